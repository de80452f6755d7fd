"""The credentials that the tests use: `leaks` looks for each of them in all that the test run shows or writes down."""

API_KEY = "sk_live_9f8e7d6c5b4a"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.e30.zUr1VqM7"
PASSWORD = "pass-word-1"
ACCESS_KEY_ID = "AKIAIOSFODNN7EXAMPLE"
SECRET_ACCESS_KEY = 'wJalrXUtn"FEMI7K/MDENG7+bPxRfi\\=='
DRIVE_TOKEN = "ya29.a0AfB_byC-drive-token-7"
REFRESH_TOKEN = "1//0g-drive-refresh-token-8"
SIGNATURE = "Zk5tQ2vN+Zk5tQ2vM/Wy8HuR4x=="
WEBHOOK_SECRET = "whsec_6f1d0c5ab37e"

ALL = [value for name, value in sorted(globals().items()) if name.isupper() and isinstance(value, str)]
