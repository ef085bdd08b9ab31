"""What is made of scores: test scores, tables, charts, pictures."""
