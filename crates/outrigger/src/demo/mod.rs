//! `outrigger demo`: a small app wrapped by Outrigger with all four subsystems, in a separate directory. In: nothing. Out: a
//! running demo to explore, or with `--check` a line per subsystem and an exit code. Requires no root, no server and no network.

pub mod app;
mod check;
mod repository;

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The directory and ports of one demo.
pub struct Demo {
    pub dir: PathBuf,
    pub app_port: u16,
    pub proxy_port: u16,
    pub metrics_port: u16,
    pub admin_port: u16,
}

/// How long the demo may take to be ready.
const START: Duration = Duration::from_secs(20);

/// How long a shutdown may take, slightly longer than the deadline in the demo's configuration.
const STOP: Duration = Duration::from_secs(15);

pub fn run(check: bool, dir: Option<&Path>) -> i32 {
    let temporary = dir.is_none();
    let result = Demo::prepare(dir).and_then(|demo| {
        let result = demo.play(check);
        if temporary && check {
            let _ = fs::remove_dir_all(&demo.dir);
        }
        result
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: cannot run the demo: {error}");
            1
        }
    }
}

impl Demo {
    fn prepare(dir: Option<&Path>) -> io::Result<Demo> {
        let temporary = || std::env::temp_dir().join(format!("outrigger-demo-{}", std::process::id()));
        let dir = dir.map_or_else(temporary, Path::to_path_buf);
        fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        let [app_port, proxy_port, metrics_port, admin_port] = free_ports()?;
        let demo = Demo { dir, app_port, proxy_port, metrics_port, admin_port };
        if !demo.repository().join("HEAD").exists() {
            repository::create(&demo.repository(), "hello").map_err(io::Error::other)?;
        }
        fs::write(demo.config(), demo.yaml()?)?;
        Ok(demo)
    }

    pub fn repository(&self) -> PathBuf {
        self.dir.join("config.git")
    }

    pub fn settings(&self) -> PathBuf {
        self.dir.join("settings")
    }

    pub fn delivered(&self) -> PathBuf {
        self.dir.join("delivered.log")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("outrigger.yaml")
    }

    fn yaml(&self) -> io::Result<String> {
        let exe = std::env::current_exe()?;
        let quoted = |path: &Path| serde_json::to_string(&path.display().to_string()).map_err(io::Error::other);
        let Demo { app_port, proxy_port, metrics_port, admin_port, .. } = self;
        Ok(format!(
            "\
app:
  command: [{exe}, demo-app, --dir, {settings}, --port, \"{app_port}\"]
  port: {app_port}
  stop: {{ drain_timeout: 2s, grace_period: 5s, timeout: 10s }}
state: {{ dir: {state} }}
logs:
  sources:
    app:    {{ stdio: {{}} }}
    access: {{ proxy: {{}} }}
  stages:
    - parse: {{ json: {{}} }}
    - set: {{ service: demo }}
  sinks:
    delivered: {{ file: {{ path: {delivered}, format: json }} }}
metrics:
  sources:
    app:     {{ scrape: {{ url: \"http://127.0.0.1:{app_port}/metrics\", interval: 1s }} }}
    process: {{ process: {{}} }}
    proxy:   {{ proxy: {{}} }}
  sinks:
    page: {{ prometheus: {{ listen: \"127.0.0.1:{metrics_port}\" }} }}
sync:
  settings:
    store:   {{ git: {{ url: {repository}, ref: main, interval: 1s }} }}
    publish: {{ symlink: {{ path: {settings} }} }}
    notify: [ {{ signal: SIGHUP }} ]
proxy:
  listeners:
    inbound: {{ listen: \"127.0.0.1:{proxy_port}\", cluster: app }}
admin:
  listen: \"127.0.0.1:{admin_port}\"
  socket: {socket}
",
            exe = quoted(&exe)?,
            settings = quoted(&self.settings())?,
            state = quoted(&self.dir.join("state"))?,
            delivered = quoted(&self.delivered())?,
            repository = quoted(Path::new(&format!("file://{}", self.repository().display())))?,
            socket = quoted(&self.dir.join("admin.sock"))?,
        ))
    }

    fn play(&self, check: bool) -> io::Result<i32> {
        let mut child = self.start(check)?;
        if let Err(error) = self.await_ready(&mut child) {
            stop(&mut child)?;
            return Err(error);
        }
        if check {
            let passed = check::all(self);
            let code = stop(&mut child)?;
            if code != Some(0) {
                println!("stop: failed: the demo exited with {code:?}");
            }
            return Ok(i32::from(!passed || code != Some(0)));
        }
        self.print_suggestions();
        let status = wait_through_interrupts(child)?;
        println!("\nThe demo has exited; its files are in {}", self.dir.display());
        Ok(status.code().unwrap_or(1))
    }

    fn start(&self, check: bool) -> io::Result<Child> {
        let log = fs::File::create(self.dir.join("outrigger.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--config").arg(self.config()).stdin(Stdio::null());
        // The app's lines would hide the output of the demo; the file sink has them.
        command.stdout(Stdio::null()).stderr(if check { Stdio::from(log) } else { Stdio::inherit() });
        command.spawn()
    }

    fn await_ready(&self, child: &mut Child) -> io::Result<()> {
        let until = Instant::now() + START;
        loop {
            if let Ok((200, _)) = get(self.admin_port, "/ready") {
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(self.dir.join("outrigger.log")).unwrap_or_default();
                return Err(io::Error::other(format!("outrigger exited with {status}\n{log}")));
            }
            if Instant::now() > until {
                let reason = get(self.admin_port, "/ready").map(|(_, body)| body).unwrap_or_default();
                return Err(io::Error::other(format!("not ready within {START:?}: {reason}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn print_suggestions(&self) {
        let Demo { proxy_port, metrics_port, admin_port, .. } = self;
        let (dir, repository) = (self.dir.display(), self.repository().display().to_string());
        println!(
            "
An ordinary web server runs with Outrigger as its sidecar.

  the page          http://127.0.0.1:{admin_port}/
  the app           http://127.0.0.1:{proxy_port}/         through the proxy
  its metrics       http://127.0.0.1:{metrics_port}/metrics
  its log lines     {dir}/delivered.log
  its configuration {dir}/settings/greeting.txt, from {repository}
  the one file      {dir}/outrigger.yaml

Try, in another terminal:

  curl http://127.0.0.1:{proxy_port}/
  tail -f {dir}/delivered.log
  git clone {repository} {dir}/work && cd {dir}/work && echo ahoy > greeting.txt \\
    && git -c user.name=me -c user.email=me@example.com commit -qam ahoy && git push -q && sleep 2 && curl http://127.0.0.1:{proxy_port}/
  pkill -9 outrigger-worke          # the worker, not the app: nothing is lost, and it restarts immediately

Ctrl-C stops it.
"
        );
    }
}

/// Ctrl-C reaches the child too, which shuts down gracefully: this process waits until the child has exited.
fn wait_through_interrupts(mut child: Child) -> io::Result<std::process::ExitStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pid = child.id();
        let mut interrupts = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let mut terminations = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut exited = tokio::task::spawn_blocking(move || child.wait());
        loop {
            tokio::select! {
                status = &mut exited => return status.map_err(io::Error::other)?,
                _ = interrupts.recv() => {}
                // SIGTERM was sent only to this process.
                _ = terminations.recv() => terminate(pid),
            }
        }
    })
}

/// Stops the child as a platform would, and waits.
fn stop(child: &mut Child) -> io::Result<Option<i32>> {
    terminate(child.id());
    let until = Instant::now() + STOP;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > until {
            child.kill()?;
            return Ok(child.wait()?.code());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn terminate(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // A child that has already exited needs no signal.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Four different ports that are free now.
fn free_ports() -> io::Result<[u16; 4]> {
    let listeners = [bind()?, bind()?, bind()?, bind()?];
    let mut ports = [0; 4];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn bind() -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// One HTTP/1.0 request on loopback: status and body.
pub fn get(port: u16, path: &str) -> io::Result<(u16, String)> {
    use std::io::{Read as _, Write as _};
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("the response is not HTTP"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| io::Error::other("the response has no status"))?, body.to_string()))
}
