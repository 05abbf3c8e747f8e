"""The OCI configuration: nothing that reaches out of the container, and the image's own command."""

import posixpath
import re
from collections.abc import Iterator
from functools import partial

from cima_runc.base.text import printable
from cima_runc.measure.config_summary import (
    ALL_CAPABILITIES,
    ConfigSummary,
    Device,
    DeviceRule,
    Hook,
)
from cima_runc.measure.oci_config import hidden_value
from cima_runc.verifier.pattern import exactly, matches
from cima_runc.verifier.policy import DYNAMIC_MAJORS, AllowedDevice, ConfigPolicy, covers
from cima_runc.verifier.reference.file import ReferenceConfig
from cima_runc.verifier.result import Finding
from cima_runc.verifier.rules import engines
from cima_runc.verifier.rules.image_files import ImageFiles
from cima_runc.verifier.rules.mounts import (
    EngineMounts,
    allows,
    is_engines_init,
    kind,
    matches_any,
    mount_over,
)
from cima_runc.verifier.toml import array, quoted

ALL_DEVICES = "a *:*"
"""The rule by which a container may use every device."""

KERNEL_SETTINGS = "/proc/sys"
"""The kernel's own settings; its files that are the host's may be written by the host's root, which
a container's is, with no capability at all: ``kernel/core_pattern`` is a program that the kernel
starts on the host. So is ``kernel/uevent_helper`` of sysfs."""

LOADING = frozenset(
    {
        "ANT_ARGS",
        "ANT_OPTS",
        "APT_CONFIG",
        "AWKLIBPATH",
        "AWKPATH",
        "BABEL_CACHE_PATH",
        "BASHOPTS",
        "BASH_ENV",
        "BOOTSNAP_CACHE_DIR",
        "BROWSER",
        "BUNDLER_SETUP",
        "BUNDLE_APP_CONFIG",
        "BUNDLE_BIN_PATH",
        "BUNDLE_GEMFILE",
        "BUNDLE_PATH",
        "BUNDLE_USER_CONFIG",
        "BUNDLE_USER_HOME",
        "BUNDLE_USER_PLUGIN",
        "BUN_INSPECT_PRELOAD",
        "BUN_OPTIONS",
        "CAMLLIB",
        "CAML_LD_LIBRARY_PATH",
        "CARGO_BUILD_RUSTC",
        "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_RUSTC_WRAPPER",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CDPATH",
        "CHICKEN_REPOSITORY_PATH",
        "CLASSPATH",
        "CLJ_CONFIG",
        "CL_SOURCE_REGISTRY",
        "CMAKE_TOOLCHAIN_FILE",
        "COMPOSER",
        "COMPOSER_VENDOR_DIR",
        "CONFIG_SITE",
        "CORECLR_ENABLE_PROFILING",
        "COREPACK_HOME",
        "COR_ENABLE_PROFILING",
        "CVS_RSH",
        "DENO_DIR",
        "DOTNET_ADDITIONAL_DEPS",
        "DOTNET_SHARED_STORE",
        "DOTNET_STARTUP_HOOKS",
        "ELIXIR_ERL_OPTIONS",
        "EMACSLOADPATH",
        "ERL_AFLAGS",
        "ERL_FLAGS",
        "ERL_LIBS",
        "ERL_ZFLAGS",
        "FLASK_APP",
        "FPATH",
        "GCONV_PATH",
        "GDK_PIXBUF_MODULEDIR",
        "GDK_PIXBUF_MODULE_FILE",
        "GEMRC",
        "GEM_HOME",
        "GEM_PATH",
        "GHC_ENVIRONMENT",
        "GHC_PACKAGE_PATH",
        "GIO_EXTRA_MODULES",
        "GIO_MODULE_DIR",
        "GITPERLLIB",
        "GIT_COMMON_DIR",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_PARAMETERS",
        "GIT_CONFIG_SYSTEM",
        "GIT_DIR",
        "GIT_EDITOR",
        "GIT_EXEC_PATH",
        "GIT_EXTERNAL_DIFF",
        "GIT_PROXY_COMMAND",
        "GIT_SEQUENCE_EDITOR",
        "GIT_SSH",
        "GIT_SSH_COMMAND",
        "GIT_TEMPLATE_DIR",
        "GI_TYPELIB_PATH",
        "GNUMAKEFLAGS",
        "GOENV",
        "GOFLAGS",
        "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES",
        "GOWORK",
        "GRADLE_OPTS",
        "GST_PLUGIN_PATH",
        "GST_PLUGIN_SCANNER",
        "GST_PLUGIN_SYSTEM_PATH",
        "GS_LIB",
        "GS_OPTIONS",
        "GTK_EXE_PREFIX",
        "GTK_IM_MODULE_FILE",
        "GTK_MODULES",
        "GTK_PATH",
        "GUILE_EXTENSIONS_PATH",
        "GUILE_LOAD_COMPILED_PATH",
        "GUILE_LOAD_PATH",
        "GUILE_SYSTEM_COMPILED_PATH",
        "GUILE_SYSTEM_EXTENSIONS_PATH",
        "GUILE_SYSTEM_PATH",
        "HGRCPATH",
        "IBM_JAVA_OPTIONS",
        "IPYTHONDIR",
        "JAVA_TOOL_OPTIONS",
        "JDK_JAVAC_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "JRUBY_OPTS",
        "JULIA_BINDIR",
        "JULIA_DEPOT_PATH",
        "JULIA_LOAD_PATH",
        "JULIA_PROJECT",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_CONFIG_PATH",
        "JUPYTER_DATA_DIR",
        "JUPYTER_PATH",
        "JYTHONPATH",
        "LD_ASSUME_KERNEL",
        "LD_AUDIT",
        "LD_DEBUG_OUTPUT",
        "LD_DYNAMIC_WEAK",
        "LD_HWCAP_MASK",
        "LD_ORIGIN_PATH",
        "LD_POINTER_GUARD",
        "LD_PREFER_MAP_32BIT_EXEC",
        "LD_PROFILE",
        "LD_PROFILE_OUTPUT",
        "LD_TRACE_LOADED_OBJECTS",
        "LD_TRACE_PRELINKING",
        "LD_USE_LOAD_BIAS",
        "LESSCLOSE",
        "LESSOPEN",
        "LIBMYSQL_PLUGINS",
        "LIBMYSQL_PLUGIN_DIR",
        "LUAROCKS_CONFIG",
        "MAGICK_CONFIGURE_PATH",
        "MAGICK_HOME",
        "MAKEFILES",
        "MAKEFLAGS",
        "MAVEN_ARGS",
        "MAVEN_OPTS",
        "MIX_ARCHIVES",
        "MIX_BUILD_PATH",
        "MIX_BUILD_ROOT",
        "MIX_DEPS_PATH",
        "MIX_EXS",
        "MIX_HOME",
        "MIX_PATH",
        "MONO_CONFIG",
        "MONO_ENV_OPTIONS",
        "MONO_GAC_PREFIX",
        "MONO_PATH",
        "MYSQL_HOME",
        "NODE_COMPILE_CACHE",
        "NODE_OPTIONS",
        "NODE_PATH",
        "NODE_REPL_EXTERNAL_MODULE",
        "NULLCMD",
        "OCAMLFIND_CONF",
        "OCAMLLIB",
        "OCAMLPATH",
        "OCTAVE_PATH",
        "OCTAVE_SITE_INITFILE",
        "OCTAVE_VERSION_INITFILE",
        "OPENJ9_JAVA_OPTIONS",
        "OPENSSL_CONF",
        "OPENSSL_ENGINES",
        "OPENSSL_MODULES",
        "PERL5DB",
        "PERL5LIB",
        "PERL5OPT",
        "PERL6LIB",
        "PERLLIB",
        "PGSYSCONFDIR",
        "PHPRC",
        "PHP_INI_SCAN_DIR",
        "PLTADDONDIR",
        "PLTCOLLECTS",
        "PLTCOMPILEDROOTS",
        "PLTUSERHOME",
        "PS4",
        "PSModulePath",
        "PSQLRC",
        "PYTHONBREAKPOINT",
        "PYTHONHOME",
        "PYTHONINSPECT",
        "PYTHONPATH",
        "PYTHONPLATLIBDIR",
        "PYTHONPYCACHEPREFIX",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
        "PYTHON_PRESITE",
        "QML2_IMPORT_PATH",
        "QML_IMPORT_PATH",
        "QT_PLUGIN_PATH",
        "QT_QPA_PLATFORM_PLUGIN_PATH",
        "RAKULIB",
        "READNULLCMD",
        "REBAR_CONFIG",
        "REBAR_GLOBAL_CONFIG_DIR",
        "RELEASE_BOOT_SCRIPT",
        "RELEASE_BOOT_SCRIPT_CLEAN",
        "RELEASE_REMOTE_VM_ARGS",
        "RELEASE_SYS_CONFIG",
        "RELEASE_VM_ARGS",
        "RELEASE_VSN",
        "RPM_CONFIGDIR",
        "RSYNC_CONNECT_PROG",
        "RSYNC_RSH",
        "RUBYGEMS_GEMDEPS",
        "RUBYLIB",
        "RUBYOPT",
        "RUBY_CRASH_REPORT",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "R_ENVIRON",
        "R_ENVIRON_USER",
        "R_HOME",
        "R_LIBS",
        "R_LIBS_SITE",
        "R_LIBS_USER",
        "R_PROFILE",
        "R_PROFILE_USER",
        "R_TESTS",
        "SASL_PATH",
        "SBCL_HOME",
        "SBT_OPTS",
        "SHELLOPTS",
        "SVN_SSH",
        "TAR_OPTIONS",
        "TCLLIBPATH",
        "TCL_LIBRARY",
        "TEXMFCNF",
        "TK_LIBRARY",
        "TRUFFLERUBYOPT",
        "V8_COMPILE_CACHE_CACHE_DIR",
        "WGETRC",
        "YARN_RC_FILENAME",
        "YARN_YARN_PATH",
        "ZDOTDIR",
        "ZIPOPT",
        "_JAVA_OPTIONS",
    }
)
"""Environment variables that make a program load other code, beside :data:`_LOADING_PREFIXES`.
Sources: sudo's initial_badenv_table (env.c), the manuals of the languages, of tools that run a
variable as a command where nobody types (GNU tar, Git, rsync), those of the loaders of glibc
(ld.so(8), elf/rtld.c, elf/dl-support.c) and musl, and what languages' own starters read beside
(RubyGems' rubygems.rb, the script that ``mix release`` makes, Guile's load.c). Such names code, or
a file or directory that does: a cache of what was compiled is code as well. Those with many honest
uses are in :data:`~cima_runc.verifier.rules.looked_at.SETTINGS`, and count by what they name.
``ENV`` is none: a shell reads the file
that it names only where a person types (POSIX.1-2017, sh), who may type what the file would do, and
many programs have a variable of this name for something else. ``BROWSER`` is a command line that
Python's standard library runs, at the start of any program where ``PYTHONWARNINGS`` names a module
that opens one; that alone has many honest uses. Nor is all of ``LD_``: LaunchDarkly's SDKs are set
by such (``LD_SDK_KEY``), and ``LD_BIND_NOW`` changes when code is loaded, not which."""
_LOADING_PREFIXES = (
    "BASH_FUNC_",  # functions that bash defines when it starts
    "CORECLR_PROFILER",
    "BUNDLER_ORIG_",  # what Bundler sets the others to, where a program is to run without it
    "COR_PROFILER",
    "DOTNET_ROOT",  # and DOTNET_ROOT_X64: where the runtime is
    "ERL_OTP",  # ERL_OTP27_FLAGS: those of ERL_FLAGS, for one release
    "LD_LIBRARY_PATH",  # and what other systems' loaders have besides: LD_LIBRARY_PATH_64
    "LD_PRELOAD",
    "LUA_CPATH",
    "LUA_INIT",
    "LUA_PATH",
)
_TCL_MODULES = re.compile(r"TCL\d+[._]\d+_TM_PATH")
"""Where Tcl looks for modules, by its version (tm(n))."""
_NPM = re.compile(
    r"npm_config_(call|git|(global[_-])?pnpmfile|globalconfig|init[_-]module|node[_-]gyp"
    r"|node[_-]options|onload[_-]script|prefix|script[_-]shell|userconfig)",
    re.IGNORECASE,
)
"""npm's and pnpm's settings by which they run something else, or give programs ``NODE_OPTIONS``,
and ``prefix``, below which a file has such: in letters of either case, and with hyphens (npm,
config: Environment Variables; @npmcli/config, loadEnv)."""


_ANSWERS = {
    "notify": "a program of the host's answers some (SCMP_ACT_NOTIFY)",
    "pretend": "some are said to have succeeded, and are not done (errnoRet 0)",
}


class ConfigRule:
    """Judges one ``config`` record."""

    def __init__(
        self,
        config: ConfigSummary,
        image: ReferenceConfig,
        policy: ConfigPolicy,
        record: int,
        *,
        mounts: EngineMounts | None = None,
        files: ImageFiles | None = None,
        groups: frozenset[int] = frozenset(),
        secret: bytes | None = None,
    ) -> None:
        """``mounts``: those that this container's engine makes; None as for version 1. ``files``:
        the image's. ``groups``: those that the engine has put the image's user into. ``secret`` is
        what the environment's values are hidden with; None where nobody told it."""
        self._config = config
        self._engine = mounts or EngineMounts({}, config)
        self._image = image
        self._files = files
        self._groups_added = groups
        self._policy = policy
        self._secret = secret
        self._record = record
        self._finding = partial(Finding.unless, record=record)

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong."""
        if self._config.misspelt:
            yield self._finding(
                False,
                "config.misspelt",
                "keys are spelt so that runtimes may read them otherwise than we do",
                path=", ".join(map(printable, self._config.misspelt)),
                got=", ".join(map(printable, self._config.misspelt)),
                expected="the specification's spelling",
                next_="find out what wrote config.json",
            )
        yield from self._privileged()
        yield from self._kernel_settings()
        yield from self._namespaces()
        yield from self._capabilities()
        yield from self._mounts()
        yield from self._devices()
        yield from self._process()
        yield from self._groups()
        yield from self._env()
        yield from self._hooks()
        yield from self._annotations()
        yield from self._hidden()
        yield from self._seccomp()

    def _annotations(self) -> Iterator[Finding]:
        for name, value in self._config.steering:
            if {name, steered(name, value)} & set(self._policy.annotations):
                continue
            yield self._finding(
                False,
                "config.annotation",
                f"by the annotation {name} crun runs it otherwise than its configuration says",
                path="annotations",
                got=f"{name}={printable(value)}",
                expected="no such annotation",
                next_=f"start it without; [config] annotations = {array([steered(name, value)])}"
                " in the policy",
            )

    # -- what reaches out -------------------------------------------------------------------------

    def _privileged(self) -> Iterator[Finding]:
        config, policy = self._config, self._policy
        reasons, allowed = [], []
        if config.all_devices:
            reasons.append("it may use all devices")
            allowed.append(any(covers(each, ALL_DEVICES) for each in policy.device_rules))
        if not config.masked_paths:
            reasons.append("no part of /proc and /sys is hidden from it")
            allowed.append(policy.allow_unmasked)
        if not reasons:
            return
        if config.seccomp is None:
            reasons.append("no seccomp filter")
        reasons.append(f"{len(capability_names(self._config))} capabilities")
        yield self._finding(
            policy.allow_privileged or all(allowed),
            "config.privileged",
            "the container is privileged",
            path="linux.resources.devices, linux.maskedPaths",
            got=", ".join(reasons),
            expected="not privileged",
            next_="start it without --privileged; in the policy: [config] "
            + ", ".join(privilege_keys(config)),
        )

    def _kernel_settings(self) -> Iterator[Finding]:
        # Every engine protects them; a configuration made by hand often says nothing of it.
        if not _protects(self._config, KERNEL_SETTINGS):
            yield self._finding(
                True,
                "config.kernel_settings",
                "as the host's root it may set what the kernel does, and starts, on the host",
                path="linux.readonlyPaths",
                got=", ".join(map(printable, self._config.read_only_paths)) or "none",
                expected=KERNEL_SETTINGS,
                next_=f"put {KERNEL_SETTINGS} into linux.readonlyPaths, as engines do",
            )
        for mount in self._config.mounts:
            is_safe = mount.read_only or _is_hidden(self._config, mount.destination)
            if mount.type == "sysfs" and not is_safe:
                yield self._finding(
                    True,
                    "config.kernel_settings",
                    "as the host's root it may set what the kernel starts on the host, and devices",
                    path=printable(mount.destination),
                    got=f"{printable(mount.destination)} (sysfs, writable)",
                    expected="read-only",
                    next_="mount it with the option ro, as engines do",
                )

    def _namespaces(self) -> Iterator[Finding]:
        joined = {each.type: each.path for each in self._config.joined_namespaces}
        host = shared_with_host(self._config)
        for name, got in host.items():
            if name in self._policy.host_namespaces:
                continue
            yield self._finding(
                False,
                "config.namespace",
                f"it shares the host's {printable(name)} namespace",
                path="linux.namespaces",
                got=printable(got),
                expected="its own",
                next_=f"start it without; '{name}' in [config] host_namespaces of the policy",
            )
        for name, path in joined.items():
            if name not in host and not matches_any(engines.NAMESPACES, path):
                yield self._finding(
                    True,
                    "config.joined",
                    f"it shares a {printable(name)} namespace with others",
                    path="linux.namespaces",
                    got=printable(path),
                    expected="its own",
                )

    def _capabilities(self) -> Iterator[Finding]:
        more = sorted(capability_names(self._config) - set(self._policy.capabilities))
        if more:
            yield self._finding(
                self._policy.allow_privileged,
                "config.capabilities",
                f"it has {len(more)} capabilities that the policy does not allow",
                path="process.capabilities",
                got=", ".join(map(printable, more)),
                expected=f"at most the {len(self._policy.capabilities)} of the policy",
                next_="start it without --cap-add; capabilities under [config] in the policy",
            )

    def _mounts(self) -> Iterator[Finding]:
        for mount in self._config.mounts:
            by = next((each for each in self._policy.mounts if allows(each, mount)), None)
            if by is None and self._engine.makes(mount):
                continue
            source = f" of {mount.source}" if mount.from_host else f" ({mount.type})"
            access = "read-only" if mount.read_only else "writable"
            at, from_ = printable(mount.destination), printable(source)
            if by is not None:
                yield Finding(
                    severity="info",
                    rule="config.mount",
                    what=f"the mount {at}{from_}: allowed by the policy's {by.destination}",
                    record=self._record,
                    path=at,
                )
                continue
            key = self._engine.allowing(mount)
            why = self._engine.objection(mount)
            yield self._finding(
                False,
                "config.mount",
                f"the mount {at}{from_} is not allowed" + (f": {why}" if why else ""),
                path=at,
                got=f"{printable(mount.source)} ({printable(kind(mount))}, {access})",
                expected="only mounts that engines make",
                next_=f"start it without; in the policy: [config] mounts = [{key}]",
            )

    def _devices(self) -> Iterator[Finding]:
        if self._config.all_devices:
            return  # said already
        for device in self._config.devices:
            path, number = printable(device.path), device_number(device)
            if engines.DEVICES.get(device.path) == number:
                continue
            if any(_is_allowed(each, device) for each in self._policy.devices):
                continue
            yield self._finding(
                False,
                "config.device",
                f"the device {path} is not allowed",
                path=path,
                got=printable(number),
                expected=engines.DEVICES.get(device.path, "only what every container has"),
                next_=f"start it without --device; in the policy: "
                f"[config] devices = [{device_key(device)}]",
            )
        for rule in device_rules_beyond(self._config):
            number = printable(str(rule))
            if any(covers(each, str(rule)) for each in self._policy.device_rules):
                continue
            yield self._finding(
                False,
                "config.device",
                f"it may use the devices {number}, of which it can make nodes",
                path="linux.resources.devices",
                got=number,
                expected="only what every container has",
                next_="start it without --device-cgroup-rule; in the policy:"
                f" [config] device_rules = {array([str(rule)])}",
            )

    # -- what is done to it -----------------------------------------------------------------------

    def _hidden(self) -> Iterator[Finding]:
        # An empty file or directory lies there instead, as if the image had it so.
        for path in masked_beyond(self._config):
            if any(_may_be_masked(each, path) for each in self._policy.masked_paths):
                continue
            shown = printable(path)
            yield self._finding(
                False,
                "config.masked",
                f"what the image has at {shown} is hidden from it",
                path="linux.maskedPaths",
                got=shown,
                expected="parts of /proc and /sys",
                next_="start it without; in the policy: [config] masked_paths ="
                f" [{quoted(exactly(path))}]",
            )

    def _seccomp(self) -> Iterator[Finding]:
        seccomp = self._config.seccomp
        if seccomp is None:
            yield self._finding(
                not self._policy.require_seccomp,
                "config.seccomp",
                "it has no seccomp filter",
                next_="start it with the engine's default profile",
            )
        elif seccomp.answers:
            # Refusing ends no differently than a right that it does not have; these do.
            yield self._finding(
                self._policy.allow_seccomp_answers,
                "config.seccomp",
                "its seccomp filter answers system calls in the kernel's place",
                path="linux.seccomp",
                got=", ".join(_ANSWERS[each] for each in seccomp.answers),
                expected="calls are let through or refused",
                next_="start it with the engine's default profile; allow_seccomp_answers = true"
                " under [config] in the policy",
            )

    # -- what runs --------------------------------------------------------------------------------

    def _process(self) -> Iterator[Finding]:
        config, image, policy = self._config, self._image, self._policy
        own = (*image.entrypoint, *image.cmd)
        args = command_of(config)
        if args not in {own, *policy.args} and not policy.allow_any_args:
            yield self._finding(
                False,
                "config.args",
                "it was started with another command than the image's",
                path="process.args",
                got=_shell(args),
                expected=_shell(own) if own else "none: the image names no command",
                next_=f"[config] args in the policy: {array(args)}",
            )
        wanted = image.user_number or image.user or "0"
        got = f"{config.user.uid}:{config.user.gid}"
        if not (_is_user(wanted, config) or any(_is_user(each, config) for each in policy.users)):
            is_name = not wanted.partition(":")[0].isdecimal()
            what = "it runs as another user than the image's"
            if is_name and config.user.uid:
                what = f"the image's user {printable(wanted)} is a name, which is not compared"
            yield self._finding(
                False,
                "config.user",
                what,
                path="process.user",
                got=got,
                expected=printable(wanted),
                next_=f"[config] users = ['{got}'] in the policy",
            )
        directory = _directory(image.working_dir)
        if _directory(config.cwd) not in {directory, *map(_directory, policy.working_dirs)}:
            yield self._finding(
                False,
                "config.cwd",
                "it starts in another directory than the image's",
                path="process.cwd",
                got=printable(config.cwd),
                expected=printable(directory),
                next_="[config] working_dirs in the policy",
            )

    def _groups(self) -> Iterator[Finding]:
        """Yield the groups by which it may do more with the image's own files, or less.

        Engines add those that the image gives its user, and a pod those of its volumes. What lies
        in mounts and devices is judged with these; a group that none of the image's files knows
        changes nothing else.
        """
        user, known = self._config.user, self._image.user_groups
        if known is None:
            if user.additional_gids and set(user.additional_gids) != {user.gid}:
                yield Finding(
                    severity="info",
                    rule="config.groups",
                    what="its groups are not compared: the reference values do not say which its"
                    " user has",
                    record=self._record,
                    path="process.user.additionalGids",
                    got=", ".join(map(str, user.additional_gids)),
                )
            return
        own = known.get(str(user.uid), (0,))
        wanted = self._image.user_number or self._image.user or "0"
        # What the image, or the policy, says of the first one was compared with the user.
        is_judged = not _is_user(wanted, self._config) or bool(wanted.partition(":")[2])
        is_judged |= any(
            ":" in each and _is_user(each, self._config) for each in self._policy.users
        )
        gids = set(user.additional_gids) - {user.gid} | (set() if is_judged else {user.gid})
        others = gids - {*own, *self._policy.groups, *self._groups_added}
        for gid in sorted(others & self._files.groups if others and self._files else ()):
            yield self._finding(
                False,
                "config.groups",
                f"it is in the group {gid}, which its user in the image is not, and which files of"
                " the image give other rights",
                path="process.user",
                got=str(gid),
                expected=", ".join(map(str, own)),
                next_=f"start it without; [config] groups = [{gid}] in the policy",
            )

    def _env(self) -> Iterator[Finding]:
        for name in dict.fromkeys(self._config.env):
            if self._may_have(name) or not makes_load(name):
                continue
            shown = printable(name)
            if self._has_value(name):
                yield from self._value(name)
                continue
            if name in self._image.env:
                yield Finding(
                    severity="info",
                    rule="config.env",
                    what=f"{shown} is set, as in the image; its value is not compared",
                    record=self._record,
                    path="process.env",
                    got=shown,
                )
                continue
            yield self._finding(
                False,
                "config.env",
                f"{shown} is set, which makes programs load other code",
                path="process.env",
                got=shown,
                expected="not set, as in the image",
                next_=f"start it without; [config] env = ['{shown}'] in the policy",
            )

    def _may_have(self, name: str) -> bool:
        """Whether the policy has a variable, by its name as it is or as findings print it."""
        return not {name, printable(name)}.isdisjoint(self._policy.env)

    def _has_value(self, name: str) -> bool:
        """Whether a variable's value can be compared with the image's."""
        return self._secret is not None and name in self._image.env_values

    def _value(self, name: str) -> Iterator[Finding]:
        assert self._secret is not None
        value, shown = self._image.env_values[name], printable(name)
        hidden = hidden_value(self._secret, value)
        if {found for other, found in self._config.hidden_env if other == name} != {hidden}:
            yield self._finding(
                False,
                "config.env",
                f"{shown}, which makes programs load code, has not the image's value",
                path="process.env",
                got="another value",
                expected=printable(value),
                next_=f"start it without; [config] env = ['{shown}'] in the policy",
            )

    def _hooks(self) -> Iterator[Finding]:
        for hook in self._config.hooks:
            command = hook_command(hook)
            if hook.stage not in engines.HOOK_STAGES_INSIDE:
                if not _is_engines_hook(hook):
                    what = f"the hook {printable(hook.path)} runs on the host ({hook.stage})"
                    yield self._finding(
                        True,
                        "config.hook",
                        what,
                        path=f"hooks.{hook.stage}",
                        got=_shell(command),
                        expected="none but the engine's",
                    )
                continue
            yield self._finding(
                command in self._policy.hooks,
                "config.hook",
                f"the hook {printable(hook.path)} runs in the container before its command",
                path=f"hooks.{printable(hook.stage)}",
                got=_shell(command),
                expected="none",
                next_=f"start it without; [config] hooks = [{array(command)}] in the policy",
            )
            # The policy names its path and arguments; these decide what that runs.
            for name in dict.fromkeys(hook.env):
                if self._may_have(name) or not makes_load(name):
                    continue
                shown = printable(name)
                yield self._finding(
                    False,
                    "config.env",
                    f"{shown} is set for the hook {printable(hook.path)}, which makes it load other"
                    " code",
                    path=f"hooks.{printable(hook.stage)}",
                    got=shown,
                    expected="not set",
                    next_=f"start it without; [config] env = ['{shown}'] in the policy",
                )


def hook_command(hook: Hook) -> tuple[str, ...]:
    """Return a hook's path and arguments, as the policy has them."""
    return (hook.path, *hook.args)


def _is_engines_hook(hook: Hook) -> bool:
    """Whether it is the one by which dockerd is told of the network namespace."""
    return (
        hook.stage == "prestart"
        and matches_any(("/proc/*/exe",), hook.path)
        and hook.args[:1] == ("libnetwork-setkey",)
    )


def makes_load(name: str) -> bool:
    """Return whether an environment variable makes programs load other code."""
    named = name in LOADING or name.startswith(_LOADING_PREFIXES)
    return named or any(each.fullmatch(name) for each in (_NPM, _TCL_MODULES))


def steered(name: str, value: str) -> str:
    """Return an annotation with its value, as the policy has it."""
    return f"{name}={value}"


def shared_with_host(config: ConfigSummary) -> dict[str, str]:
    """Return the types of the namespaces that are the host's, and how that is seen."""
    joined = {each.type: each.path for each in config.joined_namespaces}
    return dict.fromkeys(config.host_namespaces, "the host's") | {
        name: path
        for name, path in joined.items()
        if path.startswith("/proc/1/ns/") or path in engines.HOST_NAMESPACES
    }


def device_number(device: Device) -> str:
    """Return a device's type and numbers, as a rule of the device controller writes them."""
    kind = {"u": "c"}.get(device.type, device.type)  # unbuffered, as mknod(1) calls it
    # A runtime takes a number that is not there for 0.
    return str(DeviceRule(type=kind, major=device.major or 0, minor=device.minor or 0))


def device_key(device: Device) -> str:
    """Return the TOML that allows a device, and no other in its place, in ``[config] devices``."""
    path = f"path = {quoted(exactly(_raw(device.path)))}"
    if device.type not in {"b", "c", "p", "u"}:
        return f"{{{path}}}"  # no runtime makes one
    number = device_number(device)
    if device.major in DYNAMIC_MAJORS.get(number[0], ()):
        number = f"{number[0]} dynamic:*"
    return f"{{{path}, number = {quoted(number)}}}"


def device_rules_beyond(config: ConfigSummary) -> list[DeviceRule]:
    """Return the rules for other devices than every container has, and than are listed by path."""
    known = {*engines.DEVICE_RULES, *map(device_number, config.devices)}
    return [rule for rule in config.device_rules if str(rule) not in known]


def _is_allowed(allowed: AllowedDevice, device: Device) -> bool:
    is_number = allowed.number is None or covers(allowed.number, device_number(device))
    return is_number and matches_any((allowed.path,), device.path)


def _raw(path: str) -> bytes:
    return path.encode("utf-8", "surrogatepass")


def masked_beyond(config: ConfigSummary) -> list[bytes]:
    """Return what is masked beside parts of /proc and /sys; a relative path is from the root."""
    paths = (*config.masked_paths, *(f"/{path}" for path in config.masked_relative))
    return [_raw(path) for path in dict.fromkeys(paths) if not _is_kernels(path)]


def capability_names(config: ConfigSummary) -> set[str]:
    """Return what is in any of the capability sets."""
    sets = config.capabilities
    return {*sets.bounding, *sets.effective, *sets.inheritable, *sets.permitted, *sets.ambient}


def privilege_keys(config: ConfigSummary) -> tuple[str, ...]:
    """Return the narrowest keys of ``[config]`` that allow what a container has of all that
    ``--privileged`` gives: whatever is called privileged has not all of it."""
    is_all = config.all_devices and not config.masked_paths
    if is_all and capability_names(config) >= ALL_CAPABILITIES:
        return ("allow_privileged = true",)
    unmasked = () if config.masked_paths else ("allow_unmasked = true",)
    devices = (f"device_rules = {array([ALL_DEVICES])}",) if config.all_devices else ()
    return (*unmasked, *devices)


def command_of(config: ConfigSummary) -> tuple[str, ...]:
    """Return the command without an engine's init program before it (``--init``)."""
    match config.args:
        case (init, "--", *rest):
            mount = mount_over(config.mounts, _raw(init))
            if mount is not None and is_engines_init(mount, _raw(init)):
                return tuple(rest)
    return config.args


def _is_user(wanted: str, config: ConfigSummary) -> bool:
    user, _, group = wanted.partition(":")
    if _number(user or "0") != str(config.user.uid):
        return False
    return not group or _number(group) == str(config.user.gid)


def _number(name: str) -> str:
    """Return the number of a user or group as engines read it: 01000 is 1000 to them."""
    if name.isascii() and name.isdecimal():
        return name.lstrip("0") or "0"
    return {"root": "0"}.get(name, name)


def _directory(path: str) -> str:
    """Return a directory's name as engines write it, whatever a tool has put into an image."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _shell(args: tuple[str, ...]) -> str:
    return " ".join(printable(arg) if arg and " " not in arg else repr(arg) for arg in args)


def _protects(config: ConfigSummary, path: str) -> bool:
    """Whether nothing in the container can write below a path of its ``/proc``."""
    is_there = any(mount.type == "proc" for mount in config.mounts)
    return not is_there or _is_hidden(config, path)


def _is_kernels(path: str) -> bool:
    """Whether nothing of the image can be at a path: it leads nowhere out of /proc and /sys."""
    top, *below = [name for name in path.split("/") if name not in {"", "."}] or [""]
    leads_out = ".." in below or (top == "proc" and below and _PROCESS.fullmatch(below[0]))
    return top in {"proc", "sys"} and not leads_out


def _may_be_masked(allowed: str, path: bytes) -> bool:
    """Whether a pattern allows a path; one that goes up by ``..`` has to be named as it is."""
    return allowed == exactly(path) if b"/../" in path + b"/" else matches(allowed, path)


_PROCESS = re.compile("self|thread-self|[0-9]+")
"""What in /proc is a process: its ``root`` and ``cwd`` lead back to the image's files."""


def _is_hidden(config: ConfigSummary, path: str) -> bool:
    """Whether a path is masked or read-only."""
    protected = (*config.masked_paths, *config.read_only_paths)
    return any(f"{path}/".startswith(f"{posixpath.normpath(one)}/") for one in protected)
