"""Why steps were not cached: what each is made of, what it was made of before, and the difference in words."""
