"""The object store: content-addressed keys in a folder or a bucket, results published whole or not at all."""
