"""Objects of label images: what they are, who owns them, how they are painted and numbered."""
