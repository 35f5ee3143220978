"""OLLAMA_HOST, in the forms that Ollama's own programs take."""

from __future__ import annotations

import pytest

from training.ollama import address


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("1.2.3.4:1234", "http://1.2.3.4:1234"),
        ("example.com", "http://example.com:11434"),
        ("example.com:56789", "http://example.com:56789"),
        ("http://example.com", "http://example.com:80"),
        ("https://example.com", "https://example.com:443"),
        ("https://example.com:8443/ai/ollama/", "https://example.com:8443/ai/ollama"),
        ("example.com/ollama", "http://example.com:11434/ollama"),
        ("example.com:56789/", "http://example.com:56789"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        ("http://[fe80::1]:1337/x", "http://[fe80::1]:1337/x"),
        (" 'nas:1' ", "http://nas:1"),
        ('"nas"', "http://nas:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:99", "http://127.0.0.1:99"),
        ("[::]:99", "http://[::1]:99"),
        ("nas:66000", "http://nas:11434"),
        ("nas:-1", "http://nas:11434"),
        ("nas:port", "http://nas:11434"),
        ("https://nas:66000", "https://nas:443"),
        ("ollama.com", "https://ollama.com:443"),
    ],
)
def test_every_form_of_the_address_is_taken(written: str, wanted: str) -> None:
    assert str(address.parse(written)) == wanted


def test_the_variable_is_the_one_of_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "nas:1234")
    assert str(address.from_environment()) == "http://nas:1234"
