module contender

go 1.19

// No requirements here: setup adds the newest go-nfqueue that it can get, and with it go.sum.
