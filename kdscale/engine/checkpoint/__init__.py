"""What a run keeps on disk: its folder and who holds it, saves, and the files that a phase leaves."""
