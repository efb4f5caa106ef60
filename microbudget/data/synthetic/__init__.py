"""What stands in where real data are not at hand: flowers, speech, pages."""
