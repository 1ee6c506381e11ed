# The part of test-package about the .rpm, in a root of its own for rpm within the copy $root of this machine's file system. There, a package
# "base" stands for a distribution: a shell, and a systemd whose commands note what they are told.

if [ ! -x "$root/usr/bin/rpm" ]; then
	echo "fetching rpm"
	inside apt-get -qq update >/dev/null
	inside env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends rpm >/dev/null 2>&1 ||
		fail "rpm cannot be installed into the copy of this machine"
fi
fedora=$root/fedora
mkdir "$fedora"
# --force-debian: Debian's rpm else refuses, since packages of another kind do not belong onto a Debian. --nosignature: ours is not signed.
rpm_there() { inside rpm --root /fedora --nosignature "$@"; }
rpm_install() { rpm_there --force-debian -U "$@"; }
asked() { inside rpm --nosignature -qp "$@"; }
rpm_told() {
	touch "$fedora/told"
	diff - "$fedora/told" || fail "rpm's scripts told systemd something else"
	: >"$fedora/told"
}
same() { [ "$1" = "$2" ] || fail "$3: it is '$1' and should be '$2'"; }

echo "rpm: what it says"
# The names are those of Fedora. A CRIU that is too old does not count; rpm installs without what is only recommended.
same "$(asked --recommends /tmp/1.0.0.rpm | paste -sd ,)" "criu >= 4.2,nftables" "what it recommends"
same "$(asked --requires /tmp/1.0.0.rpm | grep -v '^rpmlib' | paste -sd ,)" "/bin/sh" "what it requires"
same "$(asked --qf '%{ARCH}' /tmp/1.0.0.rpm)" x86_64 "the architecture"
same "$(asked --configfiles /tmp/1.0.0.rpm)" /etc/stasis/config.yaml "configuration"
same "$(asked --qf '[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME} %{FILEFLAGS:fflags}\n]' /tmp/1.0.0.rpm |
	grep -E '^(/etc/stasis/config.yaml|/usr/bin/stasis|/usr/lib/stasis/install-criu|/usr/lib/systemd/system/stasis.service|/var/lib/stasis) ' |
	sed 's/ *$//' | paste -sd ,)" \
	"/etc/stasis/config.yaml -rw-r--r-- root cn,/usr/bin/stasis -rwxr-xr-x root,/usr/lib/stasis/install-criu -rwxr-xr-x root,\
/usr/lib/systemd/system/stasis.service -rw-r--r-- root,/var/lib/stasis drwx------ root" "modes of files"

echo "rpm: install"
rpm_there --initdb
rpm_install /tmp/base.rpm
# Folders such as /usr/share are a distribution's, and not in this base.
all_files() { (cd "$fedora" && find . \( -not -type d -o -name '*stasis*' \) -not -path './var/lib/rpm*' -not -name told | sort); }
before=$(all_files)
rpm_install /tmp/1.0.0.rpm
rpm_told <<'WANT'
systemd-update-helper install-system-units stasis.socket stasis.service
WANT
same "$(rpm_there -V stasis)" "" "rpm -V"
chroot "$fedora" /usr/bin/stasis version >/dev/null || fail "stasis does not run"

echo "rpm: upgrade"
echo "checkpoint: {stream: 3}" >"$fedora/etc/stasis/config.yaml"
mkdir -p "$fedora/var/lib/stasis/checkpoints/precious"
rpm_install /tmp/1.1.0.rpm
rpm_told <<'WANT'
systemd-update-helper mark-restart-system-units stasis.service
WANT
same "$(cat "$fedora/etc/stasis/config.yaml")" "checkpoint: {stream: 3}" "the configuration"
same "$(rpm_there -q --qf '%{VERSION}' stasis)" 1.1.0 "the version"

echo "rpm: erase"
rpm_there --force-debian -e stasis 2>/dev/null
rpm_told <<'WANT'
systemd-update-helper remove-system-units stasis.socket stasis.service
WANT
[ -d "$fedora/var/lib/stasis/checkpoints/precious" ] || fail "the checkpoints are gone"
same "$(cat "$fedora/etc/stasis/config.yaml.rpmsave")" "checkpoint: {stream: 3}" "the configuration that was changed"
rm -r "$fedora/etc/stasis" "$fedora/var/lib/stasis"

echo "rpm: without systemd's helper, as in older distributions"
rm "$fedora/usr/lib/systemd/systemd-update-helper"
mkdir -p "$fedora/run/systemd/system"
rpm_install /tmp/1.0.0.rpm
rpm_install /tmp/1.1.0.rpm
rpm_there --force-debian -e stasis
rpm_told <<'WANT'
systemctl --no-reload preset stasis.socket stasis.service
systemctl daemon-reload
systemctl try-restart stasis.service
systemctl --no-reload disable --now stasis.socket stasis.service
systemctl daemon-reload
WANT
rm -r "$fedora/run"
left=$(diff <(echo "$before") <(all_files) | grep '^>' || true)
same "$left" "" "what an erased package leaves"
