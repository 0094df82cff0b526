"""Data that our displays carry beside their picture, for programs that read an executed notebook."""

METER_JSON = "application/vnd.clip-lessons.meter+json"  # what a memory meter has read; no front end draws it
