# Filled in by the owner of this piece.
