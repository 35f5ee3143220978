"""An adapter and its base become a merged model, and that the GGUF files. It has no face: import its modules. A plan waits for
the trial, which would bring half of the package with the others.
"""
