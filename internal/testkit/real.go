package testkit

// connected: the clients stay connected through dump and restore.
var connected = Needs{TCPEstablished: true}

// realKinds are programs that people use.
func realKinds() []Kind {
	return []Kind{
		{Name: "redis", Start: func(t T) Program { t.Helper(); return StartRedis(t, 16) }, Needs: connected},
		{Name: "memcached", Start: StartMemcached, Needs: connected},
		{Name: "nginx", Start: StartNginx, Needs: connected, Shares: true},
		{Name: "postgresql", Start: StartPostgres, Needs: connected, Shares: true, Forward: true, Changing: true},
		{Name: "node", Start: StartNode, Needs: connected, Changing: true},
		{Name: "python", Start: StartPython, Needs: connected, Changing: true},
		{Name: "java", Start: StartJava, Needs: connected, Changing: true},
		{Name: "go", Start: StartGo, Needs: connected, Changing: true},
		{Name: "sqlite", Start: StartSQLite, Needs: Needs{TCPEstablished: true, FileLocks: true}, Forward: true, Changing: true},
		{Name: "tmux", Start: StartTmux},
	}
}
