"""What a teacher has said, in files that stand for it."""
