"""One run around the loop: plan, resume, save."""
