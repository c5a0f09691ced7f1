"""What a function, a file or a place in a store is, whatever it is called: digests, stamps and addresses."""
