//! The peers and Outrigger: how each is found, configured and started for the same work.
//!
//! In: a directory, a listening port, the app's port. Out: a command. Each peer is tuned as its manual advises for a proxy
//! on one core: one worker, connections kept alive and reused on both sides without a cap on requests, no access log.
//! Outrigger has its metrics enabled, and like the peers no access records.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs;
use crate::report::OURS;
use crate::scratch::{free_ports, write};

pub const HAPROXY: &str = "haproxy";
pub const NGINX: &str = "nginx";
pub const ENVOY: &str = "envoy";
pub const DUMB_INIT: &str = "dumb-init";
pub const TINI: &str = "tini";

/// The body of the app's response: 130 bytes, as in a small JSON response.
const BODY: &str = "{'order':7,'status':'paid','lines':[{'sku':'A-1001','count':2,'price':1250},\
                    {'sku':'B-2002','count':1,'price':900}],'total':3400}\n";

pub fn find(name: &'static str) -> Result<PathBuf, String> {
    match name {
        OURS => programs::outrigger(),
        ENVOY => programs::envoy(),
        system => programs::system(system),
    }
}

/// The command that starts the proxy `name` on `listen` in front of the app on `app`; its files go to `directory`.
pub fn proxy(name: &str, program: &Path, directory: &Path, listen: u16, app: u16) -> Result<Command, String> {
    let mut command = Command::new(program);
    match name {
        HAPROXY => {
            let path = directory.join("haproxy.cfg");
            write(&path, &haproxy(listen, app))?;
            command.arg("-db").arg("-f").arg(path);
        }
        NGINX => return nginx(program, directory, &nginx_proxy(listen, app)),
        ENVOY => {
            let [admin] = free_ports()?;
            return envoy(program, directory, listen, app, admin);
        }
        _ => {
            let [page, admin] = free_ports()?;
            let path = directory.join("outrigger.yaml");
            write(&path, &outrigger(directory, [listen, app, page, admin]))?;
            command.arg("run").arg("-c").arg(path);
        }
    }
    Ok(command)
}

/// The app behind every proxy: nginx with one worker that returns the same small body for any request.
pub fn app(program: &Path, directory: &Path, listen: u16) -> Result<Command, String> {
    let server = format!(
        "  server {{\n    listen 127.0.0.1:{listen} backlog=1024;\n    default_type application/json;\n    \
         location / {{ return 200 \"{}\"; }}\n  }}\n",
        BODY.replace('\n', "\\n")
    );
    nginx(program, directory, &server)
}

/// Envoy with one listener, one worker and its admin interface.
pub fn envoy(program: &Path, directory: &Path, listen: u16, app: u16, admin: u16) -> Result<Command, String> {
    let path = directory.join("envoy.yaml");
    write(&path, &envoy_configuration(listen, app, admin))?;
    let mut command = Command::new(program);
    command.arg("-c").arg(path).args(["--concurrency", "1", "-l", "warn", "--disable-hot-restart"]);
    Ok(command)
}

/// The arguments of an init that start `app` as its child.
pub fn wrapped(name: &str, app: &[String]) -> Vec<String> {
    let flags: &[&str] = if name == TINI { &["--"] } else { &[] };
    flags.iter().map(|flag| (*flag).to_owned()).chain(app.iter().cloned()).collect()
}

fn haproxy(listen: u16, app: u16) -> String {
    format!(
        "global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  option http-keep-alive
  http-reuse always
frontend inbound
  bind 127.0.0.1:{listen} backlog 1024
  default_backend app
backend app
  server app 127.0.0.1:{app}
"
    )
}

/// The configuration that both nginx instances share; `server` is the part that differs.
fn nginx(program: &Path, directory: &Path, server: &str) -> Result<Command, String> {
    let place = directory.display();
    let text = format!(
        "daemon off;
worker_processes 1;
pid {place}/nginx.pid;
error_log {place}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_timeout 60s;
  keepalive_requests 1000000000;
  client_body_temp_path {place}/body;
  proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi;
  scgi_temp_path {place}/scgi;
{server}}}
"
    );
    let path = directory.join("nginx.conf");
    write(&path, &text)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(directory).arg("-e").arg(directory.join("error.log")).arg("-c").arg(path);
    Ok(command)
}

fn nginx_proxy(listen: u16, app: u16) -> String {
    format!(
        "  upstream app {{
    server 127.0.0.1:{app};
    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{listen} backlog=1024;
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
    }}
  }}
"
    )
}

fn envoy_configuration(listen: u16, app: u16, admin: u16) -> String {
    let address = |port: u16| format!("{{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}");
    let (listen, app, admin) = (address(listen), address(app), address(admin));
    format!(
        r#"admin: {{ address: {admin} }}
static_resources:
  listeners:
    - name: inbound
      address: {listen}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: inbound
                codec_type: HTTP1
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [ {{ match: {{ prefix: "/" }}, route: {{ cluster: app }} }} ]
  clusters:
    - name: app
      type: STATIC
      connect_timeout: 5s
      load_assignment:
        cluster_name: app
        endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {app} }} }} ] }} ]
"#
    )
}

fn outrigger(directory: &Path, [listen, app, page, admin]: [u16; 4]) -> String {
    let place = directory.display();
    format!(
        r#"state: {{ dir: "{place}/state" }}
metrics:
  sources: {{ proxy: {{ proxy: {{}} }} }}
  sinks: {{ page: {{ prometheus: {{ listen: "127.0.0.1:{page}" }} }} }}
proxy:
  threads: 1
  listeners: {{ inbound: {{ listen: "127.0.0.1:{listen}", direction: outbound, cluster: web }} }}
  clusters: {{ web: {{ endpoints: ["127.0.0.1:{app}"] }} }}
admin: {{ listen: "127.0.0.1:{admin}", socket: "{place}/admin.sock" }}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_130_bytes() {
        assert_eq!(BODY.len(), 130);
    }
}
