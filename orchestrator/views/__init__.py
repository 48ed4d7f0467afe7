"""The JSON of every answer, as types: what the API, the command line and a journal show."""
