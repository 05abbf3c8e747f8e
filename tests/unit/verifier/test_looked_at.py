"""Kind: what whoever starts a container chose is mounted where something of it looks for code.

An engine's own mounts of secrets, configs and volumes count as harmless at a few places that hold
data by custom, and only where neither the working directory nor a home is near.
"""

import itertools
from typing import Any

import pytest
from unit.verifier.appraised import Box, image
from unit.verifier.test_engine_mounts import HOSTS, ID, POD, bind, box_on

from cima_runc.measure.oci_config import hidden_value
from cima_runc.ml.contents import measured
from cima_runc.verifier.appraisal import References, compare
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import ImageReference, ReferenceFile
from cima_runc.verifier.rules.looked_at import FILES, SETTINGS
from cima_runc.verifier.suggest import suggest

SECRET = b"s" * 32
VOLUMES = f"/var/lib/kubelet/pods/{POD}/volumes"
SOURCES = {
    "kubernetes": f"{VOLUMES}/kubernetes.io~configmap/code",
    "cri-o": f"{VOLUMES}/kubernetes.io~secret/code",
    "docker": f"/var/lib/docker/containers/{ID}/mounts/secrets/code",
    "podman": f"/var/lib/containers/storage/overlay-containers/{ID}/userdata/secrets/code",
}
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKENS = f"{VOLUMES}/kubernetes.io~projected/kube-api-access-abcde"

DATA = (
    "/run/secrets/token",
    "/run/secrets/db/password",
    "/var/run/secrets/eks.amazonaws.com/serviceaccount",
    "/var/run/secrets/tokens",
    "/etc/podinfo",
    "/etc/podinfo/labels",
    *("/cnf", "/config", "/config/a/b", "/my-config", "/certs", "/tls", "/projected-volume"),
    *("/nginx.conf", "/app.yml", "/ca.pem", "/data-of-app", "/config_2"),
)
"""Where nothing looks for code, wherever a container starts and whatever its home is."""
CODE = (
    *(
        "/email",
        "/json",
        "/plugins",
        "/conf.d",
        "/config.d",
        "/config.py",
        "/config.json",
        "/-config",
    ),
    *("/node_modules", "/node_modules/supports-color", "/__pypackages__", "/vendor", "/packages"),
    *("/.local", "/.cargo", "/.config", "/.git", "/.bundle", "/.npmrc", "/.pnp.cjs", "/.mvn"),
    *("/Gemfile", "/package.json", "/pyvenv.cfg", "/conftest.py", "/Directory.Build.props"),
    *("/custom-cont-init.d", "/docker-entrypoint-initdb.d", "/entrypoint.d", "/mods", "/R"),
    *("/home", "/home/app/.local", "/root", "/root/.bashrc", "/root/.ssh", "/nonexistent/.local"),
    *("/app/node_modules", "/app/.env.js", "/srv/x", "/opt/x", "/mnt/x", "/plugins/x", "/tmp/x"),
    *("/usr/lib/python3.11", "/usr/local/lib/site_ruby", "/usr/share/x", "/lib/x", "/lib64/x"),
    *("/etc", "/etc/config", "/etc/profile.d", "/etc/ld.so.conf.d", "/etc/pam.d", "/etc/gitconfig"),
    *("/etc/nginx/conf.d", "/etc/php/conf.d", "/etc/perl", "/etc/xdg", "/etc/podinfox"),
    *("/run", "/run/x", "/run/secretsx", "/var/run", "/var/lib/x", "/var/www/.user.ini"),
    *("/run/secrets/../x", "/run/secrets//x", "/run/secrets/.."),
)
"""Where some program looks by itself: in some language, tool or image."""
CWDS = ("/", "/app", "/usr/bin")
HOMES = (None, "/", "/root", "/app", "/nonexistent", "/tmp", "/home/app")
USERS = (0, 1000)


@pytest.fixture(name="reference", scope="module")
def _reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    found = image(tmp_path_factory.mktemp("image"))
    config = found.config.model_copy(update={"homes": ("/home/app", "/root", "/run/ircd", "/")})
    return found.model_copy(update={"config": config})


def started(
    reference: ImageReference,
    *mounts: dict[str, Any],
    host: str = "kubernetes",
    cwd: str = "/",
    uid: int = 0,
    **env: str | None,
) -> Box:
    """A container that was started in a directory, by a user, with variables."""
    values = reference.config.model_copy(update={"working_dir": cwd, "user": str(uid)})
    of = reference.model_copy(update={"config": values})
    box = box_on(HOSTS[host], of, *mounts)
    box.config["process"]["cwd"] = cwd
    box.config["process"]["user"]["uid"] = uid
    said = {"PATH": "/bin", **env}
    box.config["process"]["env"] = [
        f"{name}={hidden_value(SECRET, value)}" for name, value in said.items() if value is not None
    ]
    return box


def refused(box: Box, secret: bytes | None = SECRET, policy: str = "") -> dict[str, str]:
    """The places of mounts that are refused, and what is to be done."""
    records = [measured(record) for record in box.records()]
    known = parse_policy(policy.encode()) if policy else Policy()
    found = compare(records, References(box.image), known, None, secret)
    failed = [each for each in found if each.severity == "fail"]
    assert {each.rule for each in failed} <= {"config.mount", "config.env"}, failed
    return {each.path: each.next for each in failed if each.rule == "config.mount"}


def unknown(box: Box, secret: bytes | None = SECRET, policy: str = "") -> list[str]:
    """The variables that are refused."""
    records = [measured(record) for record in box.records()]
    found = compare(records, References(box.image), parse_policy(policy.encode()), None, secret)
    return [each.got for each in found if each.severity == "fail" and each.rule == "config.env"]


@pytest.mark.parametrize("host", SOURCES)
def test_data_is_data_and_code_is_code(host: str, reference: ImageReference) -> None:
    mounts = [bind(at, SOURCES[host]) for at in (*DATA, *CODE)]
    table = list(itertools.product(CWDS, HOMES, USERS))
    # The engine has no part in it: each of the others takes every seventh line.
    for cwd, home, uid in table if host == "kubernetes" else table[::7]:
        found = refused(started(reference, *mounts, host=host, cwd=cwd, uid=uid, HOME=home))
        assert found.keys() == set(CODE), (cwd, home, uid)


@pytest.mark.parametrize(
    ("cwd", "program", "refuses"),
    [("/", None, True), ("/app", None, False), ("/app", "/main.py", True), ("/link", None, True)],
)
def test_a_name_for_data_that_is_a_modules_as_well(
    cwd: str, program: str | None, refuses: bool, reference: ImageReference
) -> None:
    script = reference.files["/app/script"].model_copy(update={"mode": "0644"})
    link = ReferenceFile(type="link", mode="0777", uid=0, gid=0, link="/", layer=1)
    modules = (
        "/usr/lib/python3.11/secrets.py",
        "/usr/lib/python3/dist-packages/config/__init__.py",
        "/usr/lib/python3.11/lib-dynload/info.cpython-311-x86_64-linux-gnu.so",
        "/usr/lib/python3.11/logging/conf.py",
        *([program] if program else []),
    )
    files = reference.files | {"/link": link} | dict.fromkeys(modules, script)
    of = reference.model_copy(update={"files": files})
    at = ("/secrets", "/config", "/info", "/conf", "/tls")
    found = refused(started(of, *(bind(each, SOURCES["kubernetes"]) for each in at), cwd=cwd))
    assert found.keys() == ({"/secrets", "/config", "/info"} if refuses else set())


@pytest.mark.parametrize(
    ("file", "hides"),
    [
        ("/app/config/db.php", {"/config"}),
        ("/app/config/of/db.php", {"/config"}),  # include 'config/of/db.php'
        ("/usr/share/lua/5.1/ssl/https.lua", {"/ssl"}),
        ("/usr/share/lua/5.1/ssl.lua", {"/ssl"}),  # ./?/init.lua, as gateways have it
        ("/usr/share/lua/5.1/ssl/certs/x.lua", {"/ssl", "/certs"}),
        ("/app/config/of/db.txt", set()),
        ("/app/ssl.php", set()),
    ],
)
def test_a_directory_by_which_the_images_code_is_called(
    file: str, hides: set[str], reference: ImageReference
) -> None:
    """Kind: a language looks in the directory that it was started in before it does where the
    image's file is."""
    at = {"/config", "/ssl", "/certs"}
    assert taken_for_data(having(reference, file), *sorted(at), cwd="/") == at - hides
    assert taken_for_data(having(reference, file), *sorted(at), cwd="/app") == at


PYTHONS = ("/usr/lib/python3.11", "/usr/local/lib/python3.13t", "/opt/pypy/lib/pypy3.10")
IN_THE_ROOT = {
    "cwd": ({"cwd": "/"}, ()),
    "script": ({"cwd": "/app"}, ("/app.py",)),
    "variable": ({"cwd": "/app", "PYTHONPATH": "/:/src"}, ()),
    "relative": ({"cwd": "/app/sub", "PYTHONPATH": "lib:../..:"}, ()),
}
"""By what Python looks in the root before it does where the image's own module is."""
FOUND = (
    *(f"{directory}/{name}" for directory in PYTHONS for name in ("config.py", "config.pyc")),
    *("/usr/lib/python3/dist-packages/config/__init__.py", "/opt/v/site-packages/config/part.py"),
    *("/config.py", "/config.pyc", "/config.cpython-311-x86_64-linux-gnu.so"),
    *("/config.js", "/config.json", "/config.node", "/config.mjs", "/config.ts"),
    "/opt/jython/Lib/config.py",
)
SCRIPTS = (".py", ".pyc", ".js", ".mjs", ".ts")
NOT_FOUND = (
    *("/app/config.py", "/app/lib/config/__init__.py", "/usr/lib/python3.11/logging/config.py"),
    *("/config.sh", "/config.md", "/usr/lib/python3.11/config.txt", "/app/config.js"),
    *("/usr/lib/node_modules/config/index.js", "/app/config/db.php"),
    *("/usr/share/x/python.zip", "/srv/a.egg", "/usr/lib/python3.11/x.zip", "/app/lib/config.zip"),
)


def having(reference: ImageReference, *paths: str, **env: str) -> ImageReference:
    """The same with files, of which none may be executed, and variables."""
    script = reference.files["/app/script"].model_copy(update={"mode": "0644"})
    values = {"env": tuple(sorted(env)), "env_values": env}
    return reference.model_copy(
        update={
            "files": reference.files | dict.fromkeys(paths, script),
            "config": reference.config.model_copy(update=values),
        }
    )


def taken_for_data(of: ImageReference, *at: str, cwd: str = "/app", **env: str) -> set[str]:
    """Which of some mounts are accepted."""
    env = {**of.config.env_values, **env}
    box = started(of, *(bind(each, SOURCES["kubernetes"]) for each in at), cwd=cwd, **env)
    return set(at) - refused(box).keys()


@pytest.mark.parametrize("module", [*FOUND, *NOT_FOUND])
@pytest.mark.parametrize("by", [*IN_THE_ROOT, None])
def test_a_module_that_is_hidden(by: str | None, module: str, reference: ImageReference) -> None:
    """Kind: a mount is called as a module of the image that is found later, wherever that is."""
    env, more = IN_THE_ROOT[by] if by else ({"cwd": "/app"}, ())
    cwd = env["cwd"]
    of = having(
        reference, module, *more, **{name: value for name, value in env.items() if name != "cwd"}
    )
    harmless = {"/certs", "/config.yaml", "/my-config"}
    hidden = by is not None and module in FOUND
    # A script in the root looks beside itself.
    hidden |= module in FOUND and module.startswith("/config") and module.endswith(SCRIPTS)
    hidden |= by == "cwd" and module.endswith(".php")  # include looks where it was started
    expected = harmless if hidden else {"/config", *harmless}
    assert taken_for_data(of, "/config", *harmless, cwd=cwd) == expected


@pytest.mark.parametrize("by", IN_THE_ROOT)
@pytest.mark.parametrize(
    ("zipped", "path"),
    [
        ("/usr/lib/python311.zip", None),
        ("/opt/py/lib/python313t.zip", None),
        ("/v/site-packages/a-1.0-py3.egg", None),
        ("/opt/modules", "/opt/modules"),
    ],
)
def test_modules_in_one_file(
    by: str, zipped: str, path: str | None, reference: ImageReference
) -> None:
    """Which they are is not known: any name may be one that can be a module's."""
    env, more = IN_THE_ROOT[by]
    values = {name: value for name, value in env.items() if name != "cwd"}
    if path is not None:
        values["PYTHONPATH"] = f"{values.get('PYTHONPATH', '')}:{path}"
    of = having(reference, zipped, *more, **values)
    at = ("/config", "/secrets", "/my-config", "/config.yaml")
    assert taken_for_data(of, *at, cwd=env["cwd"]) == {"/my-config", "/config.yaml"}


@pytest.mark.parametrize("cwd", ["/", "/app"])
@pytest.mark.parametrize(
    ("path", "paths_file", "module", "hides"),
    [
        ("/src", None, "/src/config.py", True),
        ("/lib/a:{app}src", None, "/app/src/config/__init__.py", True),
        ("/src", None, "/src/pkg/config.py", False),
        ("/src", "easy-install.pth", "/anywhere/config.py", True),
        ("/src", "app.pth", "/anywhere/config/code.py", True),
        ("/src", "app.pth", "/anywhere/pkg/config.py", False),
        ("/src", "distutils-precedence.pth", "/anywhere/config.py", False),
        ("/src", "zope-nspkg.pth", "/anywhere/config.py", False),
    ],
)
def test_a_module_that_python_is_told_of(
    cwd: str,
    path: str,
    paths_file: str | None,
    module: str,
    hides: bool,
    reference: ImageReference,
) -> None:
    path = path.format(app="app/" if cwd == "/" else "")
    paths = [f"/usr/lib/python3/dist-packages/{paths_file}"] if paths_file else []
    package = "/".join([*module.split("/")[:-1], "__init__.py"])
    more = [package] if "/pkg/" in module else []
    of = having(reference, "/app.py", module, *paths, *more, PYTHONPATH=path)
    assert taken_for_data(of, "/config", cwd=cwd) == (set() if hides else {"/config"})


ROOT_VARIABLES = {
    "CLASSPATH": ("/", "/app.jar:/"),
    "LUA_CPATH_5_4": ("/?.so",),
    "LUA_PATH": ("/?.lua;/?/init.lua;;", "/app/?.lua;/./?.lua"),
    "NODE_PATH": ("/", "/app/lib:/", "../"),
    "PERL5LIB": ("/", "//"),
    "RUBYLIB": ("/", "/app/.."),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, all_ in ROOT_VARIABLES.items() for value in all_]
)
def test_a_variable_of_the_image_that_names_the_root(
    name: str, value: str, reference: ImageReference
) -> None:
    """What the other languages look for in such a directory is not told apart."""
    of = having(reference, **{name: value})
    assert taken_for_data(of, "/config", "/certs", "/run/secrets/x") == {"/run/secrets/x"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHONPATH", ":/app"),
        ("PYTHONPATH", "/"),
        ("NODE_PATH", "/usr/lib/node_modules:."),
        ("LUA_PATH", "/usr/local/openresty/lualib/?.lua;./?.lua;/usr/share/?/init.lua;;"),
        ("CLASSPATH", ".:/app/lib/*"),
        ("PERL5LIB", ""),
    ],
)
@pytest.mark.parametrize("cwd", ["/", "/app"])
def test_usual_paths_of_images(cwd: str, name: str, value: str, reference: ImageReference) -> None:
    of = having(reference, **{name: value})
    at = ("/config", "/secrets", "/data-of-app", "/run/secrets/x", "/etc/podinfo")
    assert taken_for_data(of, *at, cwd=cwd) == set(at)


@pytest.mark.parametrize(
    "name", ["PYTHONPATH", "RUBYLIB", "NODE_PATH", "PHP_INI_SCAN_DIR", "GEM_PATH", "CLASSPATH"]
)
@pytest.mark.parametrize("at", ["/config", "/config/sub", "/run/secrets/x"])
def test_a_variable_of_the_image_that_names_the_place(
    at: str, name: str, reference: ImageReference
) -> None:
    for value in (at, f"/usr/lib/x:{at}/sub"):
        of = having(reference, **{name: value})
        assert taken_for_data(of, at, "/certs") == {"/certs"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BASH_ENV", "/config/env.sh"),
        ("BUNDLE_GEMFILE", "/config/Gemfile"),
        ("GIT_CONFIG_GLOBAL", "/config/git"),
        ("JAVA_TOOL_OPTIONS", "-Xmx1g -javaagent:/config/agent.jar=x"),
        ("JAVA_TOOL_OPTIONS", "-Djava.ext.dirs=/config/ext"),
        ("NODE_OPTIONS", "--enable-source-maps --require=/config/trace.js"),
        ("RUBYOPT", "-I/config/lib -rtrace"),
        ("npm_config_userconfig", "/config/npmrc"),
    ],
)
def test_a_variable_of_the_image_that_names_code_in_the_place(
    name: str, value: str, reference: ImageReference
) -> None:
    """Kind: the image itself says that there is code, by whatever variable that loads some."""
    of = having(reference, **{name: value})
    assert taken_for_data(of, "/certs", "/config") == {"/certs"}
    of = having(reference, **{name: value.replace("/config/", "/usr/lib/")})
    assert taken_for_data(of, "/certs", "/config") == {"/certs", "/config"}


def test_properties_of_java_name_data(reference: ImageReference) -> None:
    value = "-Djavax.net.ssl.trustStore=/certs/store.jks -Dspring.config.location=/config/"
    of = having(reference, JAVA_TOOL_OPTIONS=value)
    assert taken_for_data(of, "/certs", "/config") == {"/certs", "/config"}


HOMES_OF_USERS = ("/config", "/config/app", "/run/secrets/own", "/run", "/etc", "/data/./git")


@pytest.mark.parametrize("home", HOMES_OF_USERS)
@pytest.mark.parametrize("variable", [None, "", "/root"])
@pytest.mark.parametrize("host", SOURCES)
def test_a_users_home_in_the_image(
    host: str, variable: str | None, home: str, reference: ImageReference
) -> None:
    """Kind: nobody says where the home is, so that it is what passwd(5) has: to the runtime, or to
    a program that becomes that user."""
    config = reference.config.model_copy(update={"homes": ("/nonexistent", home, "/root")})
    of = reference.model_copy(update={"config": config})
    places = {"/config", "/run/secrets/x", "/etc/podinfo", "/data", "/certs"}
    mounts = [bind(each, SOURCES[host]) for each in sorted(places)]
    found = refused(started(of, *mounts, host=host, HOME=variable))
    near = {
        "/run/secrets/own": {"/run/secrets/x"},
        "/run": {"/run/secrets/x"},
        "/etc": {"/etc/podinfo"},
        "/data/./git": {"/data"},
    }
    assert found.keys() & places == near.get(home, {"/config"})


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_settings_that_name_code(name: str, reference: ImageReference) -> None:
    """They count where they may name something that was mounted, and only there."""
    at = ("/secrets/kube", "/run/secrets/x")
    file = having(reference, "/srv/tool/settings")
    mounted = {"destination": "/srv/mine", "type": "tmpfs", "source": "tmpfs"}
    for value in ("/secrets/kube/other", "/elsewhere/x", "relative", "/tmp:/run/secrets/x/y"):
        assert taken_for_data(file, *at, **{name: value}) == set(), value
    assert taken_for_data(file, *at, **{name: "/secrets/kube/config"}) == {at[1]}
    assert taken_for_data(file, *at, **{name: "/run/secrets/x"}) == {at[0]}
    honest = ("", "/dev/null", "/root/.kube/config", "/home/app/.aws/config", "/srv/tool/settings")
    for value in (*honest, "/srv/mine/config", "/etc/kubernetes/admin.conf", "/root/.gradle"):
        mounts = [bind(each, SOURCES["kubernetes"]) for each in at]
        found = refused(started(file, *mounts, mounted, **{name: value}))
        assert found.keys() == {"/srv/mine"}, value
        assert unknown(started(file, mounted, **{name: value})) == [], value
    # Where no engine mounts what somebody chose, a directory may have any name.
    box = Box.honest(reference)
    box.config["process"]["env"].append(f"{name}={hidden_value(SECRET, '/elsewhere/x')}")
    assert refused(box) == {}
    assert unknown(box) == [name] * (name in FILES)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize(
    "value",
    [
        *("/dev/stdin", "//dev/./stdin", "/dev/../dev/fd/0", "/proc/self/fd/0", "/dev/tty"),
        *("/proc/self/environ", "/proc/1/environ", "../proc/self/environ", "/log", "/dev/shm"),
        *("/dev/null:/dev/stdin", "/dev/stdin:/dev/null", "/sys/x"),
        *("/etc/hosts", "/etc/hostname", "/run/stub", "/etc/resolv.conf", "/app/../etc/hosts"),
    ],
)
def test_settings_that_are_typed(name: str, value: str, reference: ImageReference) -> None:
    """Kind: what a variable names is written by whoever starts it, with no mount at all."""
    link = ReferenceFile(type="link", mode="0777", uid=0, gid=0, layer=0, link="/dev/stdout")
    stdin = link.model_copy(update={"link": "/proc/self/fd/0"})
    names = link.model_copy(update={"link": "../run/stub"})
    files = {**reference.files, "/log": link, "/dev/stdin": stdin, "/etc/resolv.conf": names}
    box = started(reference.model_copy(update={"files": files}), **{name: value})
    assert unknown(box) == [name]
    assert unknown(box, None) == [name]
    assert unknown(box, policy=f"[config]\nenv = ['{name}']") == []
    assert unknown(box, policy=suggest(box.records(), References(box.image))) == []


SEARCHED = "/usr/local/bin:/usr/bin:/image/bin"


def searching(reference: ImageReference) -> ImageReference:
    values = {"env": ("PATH",), "env_values": {"PATH": SEARCHED}}
    config = reference.config.model_copy(update=values)
    tools = ReferenceFile(type="dir", mode="0755", uid=0, gid=0, layer=1)
    files = reference.files | {"/opt/tools/bin": tools}
    return reference.model_copy(update={"config": config, "files": files})


PLACES = ("/secrets/x", "/run/secrets/x", "/etc/podinfo")


@pytest.mark.parametrize(
    ("value", "near"),
    [
        (f"/run/secrets/x:{SEARCHED}", ("/run/secrets/x",)),
        (f"{SEARCHED}:/etc/podinfo", ("/etc/podinfo",)),
        (f"/run/secrets/x/y:{SEARCHED}", PLACES),  # nobody can tell it
        ("/elsewhere", PLACES),
        ("/secrets/x", ("/secrets/x",)),
        ("run/secrets/x", PLACES),
    ],
)
def test_where_a_shell_finds_what_a_script_reads(
    value: str, near: tuple[str, ...], reference: ImageReference
) -> None:
    """Kind: a variable with many honest uses by which a program of the image reads other code: of
    `. settings.sh` a shell looks for the file in PATH, where it need not be executable."""
    found = taken_for_data(searching(reference), *PLACES, PATH=value)
    assert found == set(PLACES) - set(near)


@pytest.mark.parametrize(
    "value",
    [
        SEARCHED,
        "",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        f"/opt/tools/bin:{SEARCHED}",
        f"{SEARCHED}:/opt/tools/bin",
        f"/srv/mine/bin:{SEARCHED}",
    ],
)
@pytest.mark.parametrize("secret", [SECRET, None])
def test_honest_paths(secret: bytes | None, value: str, reference: ImageReference) -> None:
    """The image's own, an engine's, and with a directory of the image, or one that is mounted."""
    mounts = [bind(each, SOURCES["kubernetes"]) for each in PLACES]
    mounted = {"destination": "/srv/mine", "type": "tmpfs", "source": "tmpfs"}
    of = searching(reference)
    assert refused(started(of, *mounts, mounted, PATH=value), secret).keys() == {"/srv/mine"}
    # Values that an earlier version made have the name alone.
    config = of.config.model_copy(update={"env_values": {}})
    of = of.model_copy(update={"config": config})
    assert refused(started(of, *mounts, PATH=value), secret) == {}


def test_an_images_own_path_near_a_place(reference: ImageReference) -> None:
    for value, near in (("/bin:/secrets/x", "/secrets/x"), ("/etc/podinfo", "/etc/podinfo")):
        of = having(reference, PATH=value)
        assert taken_for_data(of, *PLACES, PATH=value) == set(PLACES) - {near}
    of = having(reference, PATH="/bin:/")  # `. app.yml`
    assert taken_for_data(of, "/app.yml", "/run/secrets/x", PATH="/bin:/") == {"/run/secrets/x"}
    of = having(reference, PATH="bin:")
    assert taken_for_data(of, *PLACES, cwd="/app", PATH="bin:") == set(PLACES)


def test_a_directory_that_the_image_has_is_its_own(reference: ImageReference) -> None:
    empty = ReferenceFile(type="dir", mode="0755", uid=0, gid=0, layer=1)
    of = reference.model_copy(update={"files": reference.files | {"/config": empty}})
    assert "/config" in refused(started(of, bind("/config", SOURCES["kubernetes"])))


BUSYBOX = ("/bin", "/dev", "/home", "/root", "/usr/sbin", "/var", "/var/spool/mail", "/var/www")
"""Homes in the passwd(5) of busybox's image, and of those made from it (prom/prometheus)."""


@pytest.mark.parametrize("cwd", ["/", "/prometheus"])
@pytest.mark.parametrize("host", ["kubernetes", "cri-o", "k3s"])
def test_a_pod_of_busybox(host: str, cwd: str, reference: ImageReference) -> None:
    """Kind: an image whose token is refused for a home that nobody has there: it has no link at
    /var/run, and a user operator whose home is /var."""
    config = reference.config.model_copy(update={"homes": BUSYBOX})
    of = reference.model_copy(update={"config": config})
    assert refused(started(of, host=host, cwd=cwd)) == {}
    secret = bind("/var/run/secrets/eks.amazonaws.com/serviceaccount", f"{TOKENS}x")
    assert refused(started(of, secret, host=host, cwd=cwd)) == {}
    # It is the home alone that says nothing.
    for given in ({"HOME": "/var"}, {"XDG_DATA_HOME": "/var"}, {"cwd": "/var"}):
        assert TOKEN in refused(started(of, host=host, **given))


@pytest.mark.parametrize("home", ["/var/run", "/var/run/secrets", "/var/run/secrets/x", "/link"])
def test_other_homes_of_users_near_a_token(home: str, reference: ImageReference) -> None:
    link = ReferenceFile(type="link", mode="0777", uid=0, gid=0, link="/var/run", layer=1)
    config = reference.config.model_copy(update={"homes": (*BUSYBOX, home)})
    files = reference.files | {"/link": link}
    of = reference.model_copy(update={"config": config, "files": files})
    at = "/var/run/secrets/x"
    assert at in refused(started(of, bind(at, SOURCES["kubernetes"])))


@pytest.mark.parametrize("link", ["/var/volatile", "volatile"])
def test_a_home_that_a_tokens_link_leads_into(link: str, reference: ImageReference) -> None:
    """What lies elsewhere below /var is not known to be the system's."""
    run = ReferenceFile(type="link", mode="0777", uid=0, gid=0, link=link, layer=1)
    config = reference.config.model_copy(update={"homes": BUSYBOX})
    files = reference.files | {"/var/run": run}
    of = reference.model_copy(update={"config": config, "files": files})
    assert TOKEN in refused(started(of))


NEAR = (
    *("/run/secrets", "/run/secrets/x", "/run/secrets/x/y", "/run", "/var/run/secrets/x"),
    *("/etc/podinfo", "/etc", "/elsewhere", "/app/../run/secrets/x", "run/secrets/x", "."),
    *(
        "/run/secrets/own",
        "/proc/self/root/run/secrets/x",
        "/run/./secrets/x",
        "//run/secrets/x",
        "/link/x",
    ),
)
"""Homes of a stranger's choice, one of them behind a link of the image."""


def linked(reference: ImageReference) -> ImageReference:
    link = ReferenceFile(type="link", mode="0777", uid=0, gid=0, link="/run/secrets", layer=1)
    homes = (*reference.config.homes, "/run/secrets/own")
    return reference.model_copy(
        update={
            "files": reference.files | {"/link": link},
            "config": reference.config.model_copy(update={"homes": homes}),
        }
    )


@pytest.mark.parametrize(
    "name",
    [
        *("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_DATA_DIRS", "XDG_CONFIG_DIRS"),
        *("TEMP", "TMP", "TMPDIR", "XDG_RUNTIME_DIR"),
    ],
)
@pytest.mark.parametrize("near", NEAR)
def test_a_home_of_the_strangers_choice(name: str, near: str, reference: ImageReference) -> None:
    """Also where a volume of his is called as kubelet's token is."""
    at = "/run/secrets/x" if near not in {"/etc", "/etc/podinfo"} else "/etc/podinfo"
    if near.startswith("/var"):
        at = "/var/run/secrets/x"
    of = linked(reference)
    assert refused(started(of, bind(at, SOURCES["kubernetes"]), **{name: near})).keys() >= {at}
    if near == "/elsewhere":
        assert TOKEN in refused(started(of, **{name: near}))
    lists = f"/usr/share:{near}"
    assert at in refused(started(of, bind(at, SOURCES["kubernetes"]), **{name: lists}))


@pytest.mark.parametrize("host", ["docker", "podman", "kubernetes", "cri-o"])
def test_a_home_in_memory_that_is_shared(host: str, reference: ImageReference) -> None:
    """Kind: an engine's own mount in which others write (a pod's containers, ``--ipc``)."""
    config = reference.config.model_copy(update={"homes": ("/root", *BUSYBOX)})
    of = reference.model_copy(update={"config": config})
    for value in ("/dev/shm", "/dev/shm/x", "/dev", "/dev/../dev/shm"):
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "CARGO_HOME", "TMPDIR", "TMP"):
            assert "/dev/shm" in refused(started(of, host=host, **{name: value})), (name, value)
    assert "/dev/shm" in refused(started(of, host=host, PATH="/dev/shm:/bin"))
    assert "/dev/shm" in refused(started(of, host=host, cwd="/dev/shm"))
    for home in (None, "", "/root", "/tmp", "/", "/app"):
        assert refused(started(of, host=host, HOME=home)) == {}, home
    for at in ("/dev/shm/", "/dev/shm/tmp"):
        assert "/dev/shm" in refused(started(of, host=host, TMPDIR=at)), at
    # Docker's is the container's own, unless it is started so that others may come in.
    box = started(of, host=host, HOME="/dev/shm")
    box.config["mounts"] = [x for x in box.config["mounts"] if x["destination"] != "/dev/shm"]
    box.config["mounts"].append({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"})
    assert refused(box) == {}


@pytest.mark.parametrize("name", ["HOME", "XDG_DATA_HOME", "CARGO_HOME", "TMPDIR", "PATH"])
@pytest.mark.parametrize("path", ["/proc/77/ns/pid", None])
def test_a_home_in_another_container(
    name: str, path: str | None, reference: ImageReference
) -> None:
    """Kind: what others write is in reach with no mount at all: /proc has their processes."""
    allowed = "[config]\nhost_namespaces = ['pid', 'user', 'cgroup', 'time']"
    for value in ("/proc/7/root/x", "/proc/7/cwd", "/elsewhere"):
        box = started(reference, host="nerdctl", **{name: value})
        assert unknown(box) == []  # nobody else is there
        spaces = [x for x in box.config["linux"]["namespaces"] if x["type"] != "pid"]
        joined = [{"type": "pid", "path": path}] if path is not None else []
        box.config["linux"]["namespaces"] = [*spaces, *joined]
        assert unknown(box, policy=allowed) == [name]
        assert unknown(box, policy=f"{allowed}\nenv = ['{name}']") == []
        of_run = suggest(box.records(), References(box.image))
        assert name == "PATH" or unknown(box, policy=of_run) == []
        honest = {"PATH": "/bin"}.get(name, "/tmp")
        said = [each for each in box.config["process"]["env"] if not each.startswith(f"{name}=")]
        box.config["process"]["env"] = [*said, f"{name}={hidden_value(SECRET, honest)}"]
        assert unknown(box, policy=allowed) == []


def test_a_home_in_kubelets_token(reference: ImageReference) -> None:
    assert TOKEN in refused(started(reference, HOME=TOKEN))
    assert TOKEN in refused(started(reference, HOME=f"{TOKEN}/x"))
    assert TOKEN in refused(started(reference, cwd=TOKEN))


HONEST = {
    "HOME": ("/", "", "/root", "/app", "/usr/lib", "/tmp", "/home/svc", "/nonexistent", "/image"),
    "XDG_CONFIG_HOME": ("/tmp", "/root/.config", "/home/svc/.config", "/app", "/app/.config"),
    "XDG_CACHE_HOME": ("/tmp", "/tmp/.cache", "/data/.cache"),
    "XDG_DATA_DIRS": ("/usr/local/share:/usr/share", "/usr/share:/image/share"),
    "XDG_RUNTIME_DIR": ("/tmp", "/run/user/0", "/run/user/1000", "/tmp/runtime-svc"),
    "TMPDIR": ("/tmp", "/tmp/", "/var/tmp", "/data", "/data/", "/data/tmp", "/app", "/tmp/tmp"),
    "CREDENTIALS_DIRECTORY": ("/run/secrets", "/elsewhere"),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HONEST.items() for value in values]
)
@pytest.mark.parametrize("host", SOURCES)
def test_honest_homes(host: str, name: str, value: str, reference: ImageReference) -> None:
    """The image's own, one of its directories, its user's, and where nothing of a stranger's is."""
    own = {"HOME": "/image", "XDG_DATA_DIRS": "/usr/share:/image/share"}
    values = reference.config.model_copy(update={"env": tuple(sorted(own)), "env_values": own})
    of = reference.model_copy(update={"config": values})
    mounts = [bind(at, SOURCES[host]) for at in DATA]
    data = {"destination": "/data", "type": "tmpfs", "source": "tmpfs"}
    box = started(of, *mounts, data, host=host, cwd="/app", **{name: value})
    box.config["process"]["user"]["username"] = "svc"
    assert refused(box).keys() == {"/data"}


@pytest.mark.parametrize("has", ["/usr/lib/systemd/systemd", "/lib/systemd/systemd", None])
@pytest.mark.parametrize("value", ["/run/secrets", "/run/secrets/x", "/elsewhere", "/tmp"])
def test_units_that_systemd_is_given(
    has: str | None, value: str, reference: ImageReference
) -> None:
    """Kind: a directory of keys that one program, as an image's first, takes for its settings."""
    of = having(reference, *([has] if has else []))
    near = has is not None and value != "/tmp"
    at = "/run/secrets/tmpfiles.extra"
    directory = value if value != "/run/secrets/x" else at
    assert taken_for_data(of, at, CREDENTIALS_DIRECTORY=directory) == (set() if near else {at})


@pytest.mark.parametrize("name", ["HOME", "PATH", "KUBECONFIG"])
def test_a_variable_that_is_set_twice(name: str, reference: ImageReference) -> None:
    """Kind: what nobody can compare is the image's by its name, and there are two of that name."""
    at = "/run/secrets/x"
    own = {"HOME": "/app", "PATH": "/usr/bin", "KUBECONFIG": "/app/config"}[name]
    values = reference.config.model_copy(update={"env": (name,), "env_values": {name: own}})
    of = reference.model_copy(update={"config": values})
    for more, is_refused in ((own, False), (at, True)):
        box = started(of, bind(at, SOURCES["kubernetes"]), **{name: own})
        box.config["process"]["env"].append(f"{name}={hidden_value(SECRET, more)}")
        assert (at in refused(box, None)) is is_refused
        assert (at in refused(box)) is is_refused


@pytest.mark.parametrize("cwd", ["/run", "/run/secrets", "/run/secrets/x", "/run/secrets/x/y"])
def test_a_working_directory_near_it(cwd: str, reference: ImageReference) -> None:
    at = "/run/secrets/x"
    assert at in refused(started(reference, bind(at, SOURCES["kubernetes"]), cwd=cwd))


@pytest.mark.parametrize(
    ("program", "at", "wrong"),
    [
        ("/run/main.py", "/run/secrets", True),  # whose `import secrets` finds this one
        ("/run/main.txt", "/run/secrets", False),
        ("/run/main.py", "/run/secrets/x", False),
        ("/run/secrets/main.py", "/run/secrets/email", True),
        ("/run/secrets/main.py", "/run/secrets/node_modules/x", True),
        ("/run/secrets/y/main.py", "/run/secrets/x", False),
        ("/etc/rc.py", "/etc/podinfo", False),
    ],
)
def test_programs_of_the_image_beside_it(
    program: str, at: str, wrong: bool, reference: ImageReference
) -> None:
    script = reference.files["/app/script"].model_copy(update={"mode": "0644"})
    of = reference.model_copy(update={"files": reference.files | {program: script}})
    found = refused(started(of, bind(at, SOURCES["kubernetes"])))
    assert (at in found) is wrong


def test_without_the_containers_secret(reference: ImageReference) -> None:
    """What nobody can compare is believed where the engine or the image sets it, and only there."""
    at = "/run/secrets/x"
    assert (
        refused(
            started(reference, bind(at, SOURCES["podman"]), host="podman", HOME="/x"), None
        ).keys()
        == set()
    )
    unknown = started(reference, bind(at, SOURCES["kubernetes"]), HOME="/x")
    assert refused(unknown, None).keys() == {
        at,
        "/dev/shm",
        "/etc/podinfo",
        TOKEN,
        "/projected-volume",
    }
    values = {"env": ("HOME",), "env_values": {"HOME": "/x"}}
    config = reference.config.model_copy(update=values)
    of = reference.model_copy(update={"config": config})
    assert refused(started(of, bind(at, SOURCES["kubernetes"]), HOME="/x"), None) == {}
    near = config.model_copy(update={"env_values": {"HOME": at}})
    of = reference.model_copy(update={"config": near})
    assert at in refused(started(of, bind(at, SOURCES["kubernetes"]), HOME=at), None)


@pytest.mark.parametrize("at", ["/plugins", "/email", "/run/secrets/x"])
def test_the_policy_names_the_one_mount(at: str, reference: ImageReference) -> None:
    box = started(reference, bind(at, SOURCES["kubernetes"]), HOME="/elsewhere")
    found = refused(box)
    key = found[at].partition("in the policy: ")[2].replace("[config] ", "[config]\n")
    assert at not in refused(box, policy=key)
    assert key.count("destination") == 1
    assert refused(box, policy=suggest(box.records(), References(box.image))) == {}
