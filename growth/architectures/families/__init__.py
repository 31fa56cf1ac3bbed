"""The model families, one file each: tables of weights and the folds that their mathematics needs."""
