//! The table of the apps that `apps.rs` and `apps_companion.rs` run: programs in Python, Node, Java, C and shell, none of
//! which knows of us. A row says how an app is started, what it writes and speaks, how it takes a new configuration, and how
//! it ends. It starts nothing itself; bounded by its rows.

/// The numbered lines of an app that writes any.
const LINES: usize = 2000;

/// What is known of an app before it runs. Between @ signs: what a scene fills in.
pub struct Kind {
    /// What is searched for on this machine; the command calls it @program@.
    pub program: &'static str,
    pub command: &'static [&'static str],
    /// A configuration of its own, which the command calls @config@.
    pub config: Option<&'static str>,
    /// The file with its process id, where it writes one itself.
    pub pid_file: Option<&'static str>,
    pub speaks: Speaks,
    /// Whether it has a page with its metrics.
    pub page: bool,
    /// Whether it writes its log file in wrap mode too, beside its output.
    pub log_beside_output: bool,
    /// Whether its lines carry times and process ids, so that two runs differ in digits.
    pub dated: bool,
    /// What lines of its stderr hold that differ from run to run: times, and whom a signal to the whole group met.
    pub noise: Option<&'static str>,
    /// The numbered lines that it writes at the start.
    pub lines: usize,
    /// Its last line, or a part of it.
    pub last: &'static str,
    pub code: i32,
    /// Processes that it has at least, itself included.
    pub processes: f64,
    pub wrapped: Way,
    pub companion: Way,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Speaks {
    /// And greets by this name.
    Http(&'static str),
    Redis,
    Nothing,
}

/// How a new revision of the configuration gets into an app.
#[derive(Clone, Copy)]
pub struct Way {
    pub reports: Told,
    pub sees: Sees,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Told {
    Hangup,
    Http,
    /// It looks at the files by itself.
    Not,
}

#[derive(Clone, Copy)]
pub enum Sees {
    /// It says so in its output.
    Says,
    /// It answers a request for this path with it.
    Serves(&'static str),
    /// It has the users of the file after `ACL LOAD`.
    Users,
}

const BY_HTTP: Way = Way { reports: Told::Http, sees: Sees::Says };

/// What most of them have: numbered lines, a page, and a notice by HTTP.
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
    wrapped: Way { reports: Told::Hangup, sees: Sees::Serves("/generation") },
    companion: Way { reports: Told::Not, sees: Sees::Serves("/settings/a.conf") },
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
    wrapped: Way { reports: Told::Not, sees: Sees::Users },
    companion: Way { reports: Told::Not, sees: Sees::Users },
    ..SERVER
};

pub const SHELL: Kind = Kind {
    program: "sh",
    command: &["@program@", "@fixtures@/app.sh", "@log@", "@lines@", "@dir@/settings/a.conf"],
    page: false,
    // Said when a signal to the group has ended its command in the foreground.
    noise: Some("Terminated"),
    last: "every job has ended",
    code: 9,
    // The shell, its loop in the background, and two sleeps at least.
    processes: 4.0,
    wrapped: Way { reports: Told::Not, sees: Sees::Says },
    companion: Way { reports: Told::Not, sees: Sees::Says },
    ..SERVER
};
