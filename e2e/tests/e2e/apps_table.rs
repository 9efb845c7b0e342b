//! The table of the apps that `apps.rs` and `apps_companion.rs` run: programs in Python, Node, Java, C and shell, none of
//! which knows Outrigger. A row has an app's start command, its output and protocol, how it loads a new configuration, and how
//! it exits. It starts nothing itself; bounded by its rows.

/// The numbered lines of an app that writes any.
const LINES: usize = 2000;

/// The properties of an app, known before it runs. A scene substitutes the names between @ characters.
pub struct Kind {
    /// The program to find on this machine; @program@ in the command.
    pub program: &'static str,
    pub command: &'static [&'static str],
    /// Its own configuration file; @config@ in the command.
    pub config: Option<&'static str>,
    /// The file with its process id, if it writes one itself.
    pub pid_file: Option<&'static str>,
    pub speaks: Speaks,
    /// Whether it has a /metrics endpoint.
    pub page: bool,
    /// Whether it writes its log file in wrapped mode too, in addition to its output.
    pub log_beside_output: bool,
    /// Whether its lines contain times and process ids, so that two runs differ in digits.
    pub dated: bool,
    /// Text in stderr lines that differ from run to run: times, and which processes a signal to the process group reached.
    pub noise: Option<&'static str>,
    /// How many numbered lines it writes at the start.
    pub lines: usize,
    /// Its last line, or a part of it.
    pub last: &'static str,
    pub code: i32,
    /// Minimum number of its processes, itself included.
    pub processes: f64,
    pub wrapped: Way,
    pub companion: Way,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Speaks {
    /// Its responses greet with this name.
    Http(&'static str),
    Redis,
    Nothing,
}

/// How an app loads a new revision of the configuration.
#[derive(Clone, Copy)]
pub struct Way {
    pub notify: Notify,
    pub sees: Sees,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Notify {
    Hangup,
    Http,
    /// It checks the files by itself.
    Never,
}

#[derive(Clone, Copy)]
pub enum Sees {
    /// It prints the revision.
    Prints,
    /// It returns the revision for a request to this path.
    Serves(&'static str),
    /// It has the users of the file after `ACL LOAD`.
    Users,
}

const BY_HTTP: Way = Way { notify: Notify::Http, sees: Sees::Prints };

/// Common properties: numbered lines, a /metrics endpoint, and a notification by HTTP.
const SERVER: Kind = Kind {
    program: "",
    command: &[],
    config: None,
    pid_file: None,
    speaks: Speaks::Nothing,
    page: true,
    log_beside_output: true,
    dated: false,
    noise: None,
    lines: LINES,
    last: "stopping",
    code: 0,
    processes: 1.0,
    wrapped: BY_HTTP,
    companion: BY_HTTP,
};

pub const PYTHON: Kind = Kind {
    program: "python3",
    command: &[
        "@program@",
        "@fixtures@/app.py",
        "--port=@port@",
        "--log=@log@",
        "--lines=@lines@",
        "--settings=@dir@/settings/a.conf",
    ],
    speaks: Speaks::Http("python"),
    code: 5,
    ..SERVER
};

pub const NODE: Kind = Kind {
    program: "node",
    command: &["@program@", "@fixtures@/app.js", "@port@", "@log@", "@lines@", "@dir@/settings/a.conf"],
    speaks: Speaks::Http("node"),
    code: 6,
    ..SERVER
};

pub const JAVA: Kind = Kind {
    program: "java",
    command: &["@program@", "@fixtures@/App.java", "@port@", "@log@", "@lines@", "@dir@/settings/a.conf"],
    speaks: Speaks::Http("java"),
    code: 143,
    ..SERVER
};

pub const NGINX: Kind = Kind {
    program: "nginx",
    command: &["@program@", "-e", "stderr", "-c", "@config@"],
    config: Some("nginx.conf"),
    pid_file: Some("nginx.pid"),
    speaks: Speaks::Http("nginx"),
    page: false,
    noise: Some("[notice]"),
    lines: 0,
    last: "/r=000099",
    processes: 2.0,
    wrapped: Way { notify: Notify::Hangup, sees: Sees::Serves("/generation") },
    companion: Way { notify: Notify::Never, sees: Sees::Serves("/settings/a.conf") },
    ..SERVER
};

pub const REDIS: Kind = Kind {
    program: "redis-server",
    command: &["@program@", "@config@"],
    config: Some("redis.conf"),
    pid_file: Some("redis.pid"),
    speaks: Speaks::Redis,
    page: false,
    log_beside_output: false,
    dated: true,
    lines: 0,
    last: "Redis is now ready to exit",
    wrapped: Way { notify: Notify::Never, sees: Sees::Users },
    companion: Way { notify: Notify::Never, sees: Sees::Users },
    ..SERVER
};

pub const SHELL: Kind = Kind {
    program: "sh",
    command: &["@program@", "@fixtures@/app.sh", "@log@", "@lines@", "@dir@/settings/a.conf"],
    page: false,
    // The shell prints this when a signal to the group has terminated its foreground command.
    noise: Some("Terminated"),
    last: "every job has ended",
    code: 9,
    // The shell, its background loop, and at least two sleeps.
    processes: 4.0,
    wrapped: Way { notify: Notify::Never, sees: Sees::Prints },
    companion: Way { notify: Notify::Never, sees: Sees::Prints },
    ..SERVER
};
