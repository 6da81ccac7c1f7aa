"""Run records: what they hold, who writes them, who reads them, and how the CLI starts and resumes runs."""
