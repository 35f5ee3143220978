"""./run.sh --serve: a page and an HTTP service over ordinary runs. server.py begins it; needs requirements/service.txt."""
