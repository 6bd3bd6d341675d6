"""The shell around `core/approval.py`: calls that wait for people, what people do with them, and what becomes of them."""
