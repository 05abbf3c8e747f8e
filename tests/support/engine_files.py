"""Each engine's shipped settings file (none, or Debian's) and ten or more that look like real ones.

A file is named as in the engine's directory below /etc.
"""

CRI2 = '[plugins."io.containerd.grpc.v1.cri"'
CRI3 = "[plugins.'io.containerd.cri.v1.runtime'"

DOCKER: list[dict[str, str]] = [
    {},  # as shipped: none
    {"daemon.json": "{}"},
    {"daemon.json": ""},
    {"daemon.json": '{"live-restore":true}'},
    {"daemon.json": '{\n  "log-driver": "json-file",\n  "log-opts": {"max-size": "10m"}\n}\n'},
    {"daemon.json": '{\n    "exec-opts": ["native.cgroupdriver=systemd"],\n    "mtu": 1450\n}'},
    {"daemon.json": '{\n\t"data-root": "/srv/docker",\n\t"storage-driver": "overlay2"\n}\n'},
    {
        "daemon.json": '{\n  "runtimes": {\n    "nvidia": {\n      "args": [],\n      "path": '
        '"nvidia-container-runtime"\n    }\n  },\n  "default-runtime": "nvidia"\n}\n'
    },
    {"daemon.json": '{"runtimes": {}, "insecure-registries" : [ "a:5000" , "b" ]}\n\n'},
    {"daemon.json": '{\r\n  "debug": true,\r\n  "hosts": ["fd://", "tcp://[::1]:2375"]\r\n}\r\n'},
    {"daemon.json": '{ "userns-remap": "default", "labels": ["é=\\u00fc", "\\"}{=x"] }'},
    {"daemon.json": '{"builder": {"gc": {"enabled": true}}, "default-runtime": "runc"}'},
]
CONTAINERD: list[dict[str, str]] = [
    {},
    {
        "config.toml": f"version = 2\n\n[plugins]\n  {CRI2}]\n    {CRI2}.cni]\n      bin_dir = "
        '"/usr/lib/cni"\n      conf_dir = "/etc/cni/net.d"\n'
        '  [plugins."io.containerd.internal.v1.opt"]\n    path = "/var/lib/containerd"\n'
    },
    {"config.toml": ""},
    {"config.toml": "version = 2\n"},
    {"config.toml": "version = 3\nroot = '/srv/containerd'\n\n[grpc]\n  gid = 0\n"},
    {
        "config.toml": f'version = 2\n{CRI2}.containerd]\n  snapshotter = "overlayfs"  # fast\n'
        f'  default_runtime_name = "runc"\n  {CRI2}.containerd.runtimes]\n'
        f'    {CRI2}.containerd.runtimes.runc]\n      runtime_type = "io.containerd.runc.v2"\n'
        f"      {CRI2}.containerd.runtimes.runc.options]\n        SystemdCgroup = true\n"
    },
    {
        "config.toml": f"version = 3\n\n[plugins]\n  {CRI3}]\n    enable_cdi = true\n"
        f"    {CRI3}.containerd]\n      default_runtime_name = 'nvidia'\n"
        f"      {CRI3}.containerd.runtimes.nvidia]\n      runtime_type = 'io.containerd.runc.v2'\n"
        f"        {CRI3}.containerd.runtimes.nvidia.options]\n        BinaryName = '/usr/bin/nv'\n"
    },
    {"config.toml": 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n'},
    {
        "config.toml": "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n",
        "conf.d/10-cri.toml": f"version = 3\n{CRI3}]\n  enable_selinux = false\n",
    },
    {
        "config.toml": "imports = ['/etc/containerd/conf.d/*.toml', 'one.toml']\nversion = 2\n",
        "conf.d/nvidia.toml": f'version = 2\n{CRI2}.containerd]\ndefault_runtime_name = "nvidia"\n',
        "one.toml": "version = 2\n[debug]\n  level = 'info'\n",
    },
    {
        "config.toml": '# by hand\nversion = 2\ndisabled_plugins = ["io.containerd.grpc.v1.btrfs"]'
        "\n[debug]\n  level = 'info'\n[metrics]\n  address = '127.0.0.1:1338'"
    },
    {
        "config.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\n"
        "  config_path = '/etc/containerd/certs.d'\n"
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runsc]\n"
        "  runtime_type = 'io.containerd.runsc.v1'\n"
    },
]
PODMAN: list[dict[str, str]] = [
    {},
    {"containers.conf": '[containers]\n# log_driver = "k8s-file"\n[network]\n[engine]\n'},
    {"containers.conf": '[engine]\nruntime = "crun"\n'},
    {"containers.conf": '[engine]\nruntime_supports_json = ["crun", "runc"]\n'},
    {"containers.conf": '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'},
    {"containers.conf": '[engine.runtimes]\nrunsc = ["/usr/local/bin/runsc"]\n'},
    {"containers.conf.d/10-a.conf": '[engine]\nruntime_supports_json = ["youki"]\n'},
    {"containers.conf.d/a.conf": "[containers]\npids_limit = 100\n", "containers.conf": ""},
    {"containers.conf": "[containers]\nenv = ['A=b']\n[secrets]\n[machine]\n"},
    {"containers.conf": "[engine]\nruntime_supports_json = ['cima-runc', 'crun']\n"},
    {"containers.conf.d/zz-cima-runc.conf": "# mine\n[engine]\nnum_locks = 4096\n"},
]
CRIO: list[dict[str, str]] = [
    {},
    {
        "crio.conf.d/10-crio.conf": '[crio.image]\nsignature_policy = "/etc/crio/policy.json"\n\n'
        '[crio.runtime]\ndefault_runtime = "crun"\n\n[crio.runtime.runtimes.crun]\n'
        'runtime_path = "/usr/libexec/crio/crun"\nmonitor_path = "/usr/libexec/crio/conmon"\n'
    },
    {"crio.conf": '[crio]\nroot = "/srv/crio"\n'},
    {"crio.conf": '[crio.runtime]\ncgroup_manager = "systemd"\nconmon_cgroup = "pod"\n'},
    {"crio.conf": "[crio.runtime]\nselinux = true\n[crio.network]\n"},
    {"crio.conf.d/01-log.conf": "[crio.runtime]\nlog_level = 'debug'\n"},
    {"crio.conf.d/nvidia.conf": "[crio.runtime]\ndefault_runtime = 'nvidia'\n"},
    {"crio.conf": "# nothing\n"},
    {"crio.conf": "[crio.api]\nlisten = '/run/crio/crio.sock'\n"},
    {"crio.conf": "[crio.runtime.workloads.x]\nactivation_annotation = 'a'\n"},
    {"crio.conf.d/zz-cima-runc.conf": "[crio.metrics]\nenable_metrics = true\n"},
]
