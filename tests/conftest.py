"""What all tests share. This file's place puts tests/ on the import path, so that tests find their common modules."""
