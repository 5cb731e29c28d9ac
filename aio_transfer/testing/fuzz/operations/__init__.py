"""Operations of a random schedule: their definitions, and how each is performed. The model is not here."""
