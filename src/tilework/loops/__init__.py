"""The loops of Ryomen and Patchly."""
