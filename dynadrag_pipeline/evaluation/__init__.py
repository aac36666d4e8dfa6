"""Edits judged: pairs of pictures with a true outcome, runs over them, and tables. Import from these modules."""
