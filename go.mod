module stasis

go 1.26
