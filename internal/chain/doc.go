// Package chain knows how checkpoints belong together. It finds the ancestors of a checkpoint ([Open], [Resolver]), lists them
// ([List]), and gives space back without breaking any: [Remove], [Prune], [Dedup], [Compact].
//
// # Words
//
// A checkpoint builds on a parent, that on its own parent, and so on: these are its ancestors. Its index names, for each page, the
// checkpoint whose shards hold it (image.Manifest.Origins), so it depends on those, which need not be all ancestors; to them it is
// a dependent. What makes a folder the ancestor is the id in it. It is looked for where the manifest says, then among the folders
// beside the checkpoint and beside that place, then where the caller says.
//
// # States of a folder
//
//	              manifest.json   deduplicated.json   removed.json   img-*
//	whole         yes             –                   –              whole
//	deduplicated  yes             yes                 –              with holes
//	removed       –               perhaps             yes            with holes
//	gone          –               –                   –              –
//
// A whole checkpoint restores, and protects every block that its index refers to, in whichever folder. One that is deduplicated or
// removed protects nothing; of its own blocks those stay that a whole one protects, and the rest is punched out of the shards (their
// header, index and footer stay). A removed one that nobody needs anything of is deleted; its removed.json goes last.
//
// Each change of state is one durable step (a rename, or a file that appears by one) that comes before the first byte is given up.
// So after a crash at any moment every checkpoint is whole, or its folder says that it is not; what was not given back is given back
// by the next operation that comes by. Compact in place writes beside, into .NAME.XXXXXXXX, and lets the two folders change places
// (RENAME_EXCHANGE); what is left under such a name is removed like any checkpoint, and never listed.
//
// # Who depends on what
//
// Dependents are found by reading the manifests of all checkpoints beside the ones concerned, beside their ancestors, in the folders
// that the caller names, and where notes lead to: files needed-by-ID.json, which a dump leaves in the folders of ancestors that are
// elsewhere ([Lock.Noting]). Where one of those can't be read, or is not where its note says, nothing is given up.
//
// # Concurrency
//
// All functions may be called at once, from any number of processes. Whoever reads a checkpoint takes [LockShared] first, which
// holds its folder and those of the ancestors that it depends on (flock); what changes state or punches holds the folders exclusively,
// and looks for dependents after that: one that could be missed would have to be held by its dump.
package chain
