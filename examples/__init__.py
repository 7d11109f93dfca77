"""Clients of the world model that show what it is for; nothing else imports them."""
