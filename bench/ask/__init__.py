"""What is asked, and how: questions, prompts, chat prompts, orders of the options."""
