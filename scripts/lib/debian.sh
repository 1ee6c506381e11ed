# Debian's packages of any release, unpacked into a folder, with nothing installed on this machine. For scripts that have
# `set -e`, the functions say and die, and $cache, the folder that all of this is kept in.
#
#   STASIS_DEBIAN_MIRROR  the Debian mirror (default: the one in the system's apt sources)

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

mirrors() {
	if [ -n "${STASIS_DEBIAN_MIRROR:-}" ]; then
		echo "$STASIS_DEBIAN_MIRROR"
		return
	fi
	apt-get indextargets --no-release-info --format '$(CREATED_BY) $(COMPONENT) $(REPO_URI)' |
		awk '$1 == "Packages" && $2 == "main" && !seen[$3]++ { print $3 }'
}

# apt_for SUITE TOOL … runs apt-get or apt-cache with sources and state of its own for that suite, blind to the system's
# packages, so that it names all that a package needs.
apt_for() {
	local state=$cache/apt-$1 tool=$2
	shift 2
	"$tool" -qq -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
		-o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" \
		-o Dir::Cache="$state/cache" -o Dir::Cache::archives="$state/cache/archives" \
		-o APT::Sandbox::User=root -o APT::Install-Recommends=false -o APT::Get::Assume-Yes=true \
		-o Acquire::Check-Valid-Until=false -o APT::Update::Error-Mode=any -o APT::Update::Post-Invoke::= "$@"
}

# open_suite SUITE makes the suite's lists available, once.
open_suite() {
	local state=$cache/apt-$1 mirror
	[ ! -e "$state/ready" ] || return 0
	[ -r "$keyring" ] || die "$keyring is missing: apt-get install debian-archive-keyring"
	mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
	: >"$state/status"
	for mirror in $(mirrors); do
		echo "deb [signed-by=$keyring target=Packages] $mirror $1 main" >"$state/sources.list"
		if apt_for "$1" apt-get update >/dev/null 2>&1; then
			touch "$state/ready"
			return 0
		fi
	done
	die "no mirror has Debian's $1 (tried: $(mirrors | paste -sd ' ')): set STASIS_DEBIAN_MIRROR"
}

# unpack SUITE FOLDER PACKAGE unpacks a package, with all that it needs where FOLDER is "qemu", once.
unpack() {
	local suite=$1 into=$cache/$2 package=$3 archives
	[ ! -e "$into.ready" ] || return 0
	open_suite "$suite"
	say "fetching $package of Debian $suite"
	rm -rf "$into" "$into.debs"
	mkdir -p "$into" "$into.debs"
	if [ "$2" = qemu ]; then
		archives=$cache/apt-$suite/cache/archives
		rm -f "$archives"/*.deb
		apt_for "$suite" apt-get --download-only install "$package" >/dev/null
		mv "$archives"/*.deb "$into.debs"
	else
		(cd "$into.debs" && apt_for "$suite" apt-get download "$package" >/dev/null)
	fi
	local deb
	for deb in "$into.debs"/*.deb; do
		dpkg -x "$deb" "$into"
	done
	rm -rf "$into.debs"
	touch "$into.ready"
}

# newest SUITE PACKAGE names the package that a meta package of the kernel stands for.
newest() {
	open_suite "$1"
	apt_for "$1" apt-cache depends "$2" | awk '$1 == "Depends:" { print $2; exit }'
}

# qemu … runs QEMU with the libraries that came with it.
qemu() {
	local root=$cache/qemu libraries
	libraries=$(find "$root" -name '*.so.[0-9]*' ! -path '*/gconv/*' -printf '%h\n' | sort -u | paste -sd :)
	QEMU_MODULE_DIR=$root/usr/lib/x86_64-linux-gnu/qemu \
		"$(find "$root" -name 'ld-linux-x86-64.so.2' -type f | head -n 1)" --inhibit-cache --library-path "$libraries" \
		"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
}
