package stasis

import (
	"slices"
	"strings"
)

// checkInherited looks for descriptors that are handed over for something that the tree does not have: CRIU takes no notice of them, and the
// tree would go without what they were meant for. Of keys in brackets only pipes are compared, of which the checkpoint lists every one.
func (r *restore) checkInherited(c *conflicts, m *Manifest) error {
	if len(r.criuOpts.InheritFDs) == 0 {
		return nil
	}
	has, pipes, err := r.inheritable(m)
	if err != nil {
		return err
	}
	for key := range r.criuOpts.InheritFDs {
		isPipe := strings.HasPrefix(key, "pipe:[")
		if has[strings.TrimPrefix(key, "/")] || !isPipe && strings.Contains(key, "[") {
			continue
		}
		switch {
		case isPipe && len(pipes) == 0:
			c.object("--inherit-fd %s: the tree has no pipes: leave it out", key)
		case isPipe:
			c.object("--inherit-fd %s: the tree has no such pipe, but %s: correct it", key, some(pipes))
		default:
			c.object("--inherit-fd %s: the tree has neither a file nor an external resource of that name: see what it has by \"stasis inspect\"", key)
		}
	}
	return nil
}

// inheritable lists the keys that CRIU would look for: paths without their first slash, pipes, and resources from outside by their whole
// specification and by its name.
func (r *restore) inheritable(m *Manifest) (has, pipes map[string]bool, err error) {
	has, pipes = make(map[string]bool), make(map[string]bool)
	files, err := r.filesOfCRIU()
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		has[strings.TrimPrefix(f.Path, "/")] = true
	}
	for _, p := range m.Processes {
		for _, f := range p.Files {
			has[strings.TrimPrefix(strings.TrimSuffix(f.Path, " (deleted)"), "/")] = true
			if strings.HasPrefix(f.Path, "pipe:[") {
				pipes[f.Path] = true
			}
		}
	}
	dumped, err := criuOptionsOf(m) // a job's console is in these alone, and stays a key when the job has closed it
	if err != nil {
		return nil, nil, err
	}
	external := slices.Concat(dumped.External, r.criuOpts.External)
	for _, line := range r.criuOpts.Raw {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == "external" {
			external = append(external, strings.TrimSpace(value))
		}
	}
	for _, resource := range external {
		has[resource] = true
		if at := strings.LastIndex(resource, "]:"); at >= 0 {
			has[resource[at+2:]] = true
		}
	}
	return has, pipes, nil
}
