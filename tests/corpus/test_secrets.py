"""Keys and numbers of people are replaced wherever they are, and what only looks like one stays."""

import pytest

from engine.corpus.secrets import hide_contacts, masked

# Cut at "~", so that no scanner of repositories takes them for keys.
KEYS = (
    "sk-proj-~a1B2c3D4e5F6g7H8i9J0 sk-~0123456789abcdef0123456789abcdef ghp_~a1B2a1B2a1B2a1B2a1B2a1B2a1B2a1B2a1B2 "
    "github_pat_~11ABCDEFG0abcdefghij_k xoxb-~123456789012-abcDEF AIza~Sy1_-Sy1_-Sy1_-Sy1_-Sy1_-Sy1_-Sy1_- "
    "hf_~aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3d AKIA~IOSFODNN7EXAMPLE LTAI~5tAbCdEfGhIjKlMnOpQr "
    "glpat-~a1b2c3d4e5f6g7h8i9j0 eyJhbGciOiJIUzI1NiJ9~.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN sk_live_~a1b2c3d4e5f6g7h8"
)
KEYS = KEYS.replace("~", "").split()


@pytest.mark.parametrize("key", KEYS)
def test_api_keys_are_replaced_wherever_they_are(key):
    for frame in ("key={}", '"{}"', "我的密钥是{}。", "Authorization: Bearer {}\n", "```\n{}\n```"):
        assert masked(frame.format(key)) == frame.format("[API_KEY]")


def test_private_keys_and_tokens_of_a_header_are_replaced():
    body = f"{'MIIEpAIBAAKCAQEA' * 4}\n" * 3
    whole = f"-----BEGIN RSA PRIVATE KEY-----\n{body}-----END RSA PRIVATE KEY-----"
    assert masked(f"a\n{whole}\nb") == "a\n[PRIVATE_KEY]\nb"
    assert masked(f"{whole[:161]}\nA story.") == "[PRIVATE_KEY]\nA story."
    assert masked(whole.replace("\n", r"\n")) == "[PRIVATE_KEY]"
    program = 'START = "-----BEGIN PRIVATE KEY-----"\nread_lines(key, START)\nEND = "-----END PRIVATE KEY-----"'
    assert masked(program) == program
    assert masked("curl -H 'Authorization: Bearer a1b2c3d4e5f6g7h8i9j0'") == "curl -H 'Authorization: Bearer [API_KEY]'"
    assert masked("aws_secret_access_key = " + "wJa/8" * 8) == "aws_secret_access_key = [API_KEY]"


def test_numbers_of_people_are_replaced_where_their_check_digit_is_right():
    assert masked("号11010519491231002x，SSN 123-45-6789") == "号[ID_NUMBER]，SSN [ID_NUMBER]"
    assert masked("4111 1111 1111 1111 and 378282246310005") == "[CARD_NUMBER] and [CARD_NUMBER]"
    for other in ("110105194912310021", "110105194902300021", "4111 1111 1111 1112", "000-12-3456", "1-123-45-6789"):
        assert masked(other) == other


def test_what_only_looks_like_a_key_stays():
    for text in ("sk-xxxxxxxxxxxxxxxxxxxxxxxx", "sk-toggleable__content-with-arrow", "ask-me-1-2-3-anything-you-like"):
        assert masked(text) == text
    assert masked("Bearer authentication is explained below") == "Bearer authentication is explained below"


def test_contacts_are_replaced_and_other_numbers_stay():
    text = "a.b+c@mail.example.co.uk, +86 138-1234-5678, 010-12345678, (212) 555-0123"
    assert hide_contacts(text) == "[EMAIL], [PHONE], [PHONE], [PHONE]"
    for other in ("user@host", "3.14159265358979", "2026-12-01 10:00", "13812345678901", "1/2 + 100 = 12345678901"):
        assert hide_contacts(other) == other
