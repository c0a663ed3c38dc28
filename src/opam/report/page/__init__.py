"""The page of a finished run: its data, its figures, and the template they are put into."""
