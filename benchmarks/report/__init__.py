"""Results for people: terminal, HTML page, chart, Markdown tables, and the comparison of two results."""
