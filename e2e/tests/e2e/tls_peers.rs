//! TLS servers that refuse, or are refused: an unknown issuer, a certificate for another name, a CA certificate, an expired one, a
//! client certificate that is required. The server is `openssl s_server`. In: certificates made here. Out: samples, or the health of a
//! sink.

use std::process::Command;

use crate::harness::certificates::{Certificates, NO_OPENSSL};
use crate::harness::process::Running;
use crate::harness::status::await_health;
use crate::harness::{Outrigger, PATIENCE, Scene, get, until};

#[test]
fn each_tls_failure_has_its_cause_and_next_step() {
    let scene = Scene::new();
    let certificates = need!(Certificates::new(&scene), NO_OPENSSL);
    certificates.authority("ca", "orders");
    certificates.authority("renewed", "orders");
    certificates.authority("other", "other");
    certificates.leaf("good", "localhost", "-days 2");
    certificates.leaf("elsewhere", "elsewhere.example", "-days 2");
    certificates.leaf("expired", "localhost", "-days -1");
    scene.write("www/metrics", "up_here 1\n");
    let client = "cert_file: \"@dir@/good.crt\", key_file: \"@dir@/good.key\"";
    let required = "-Verify 1 -verify_return_error -CAfile @dir@/ca.crt";
    for (number, (cert, options, ca, client, expected)) in [
        ("good", "", "ca", "", None),
        ("good", required, "ca", client, None),
        ("good", "", "other", "", Some("the issuer of its certificate is unknown; set tls.ca_file")),
        ("good", "", "renewed", "", Some("signed by another key than that of its CA")),
        ("elsewhere", "", "ca", "", Some("its certificate is not valid for localhost")),
        ("expired", "", "ca", "", Some("its certificate has expired")),
        ("ca", "", "ca", "", Some("its certificate is a CA certificate")),
        ("good", &format!("-tls1_3 {required}"), "ca", "", Some("check tls.cert_file and tls.key_file")),
        ("good", &format!("-tls1_2 {required}"), "ca", "", Some("it may require a client certificate (tls.cert_file")),
    ]
    .into_iter()
    .enumerate()
    {
        let port = scene.port(&format!("server{number}"));
        let serve =
            format!("s_server -accept localhost:{port} -cert @dir@/{cert}.crt -key @dir@/{cert}.key -WWW {options}");
        let mut server = Command::new(certificates.program());
        server.args(scene.fill(&serve).split_whitespace()).current_dir(scene.path("www"));
        let _server = Running::spawn(server);
        // The scrape shows a success, and the sink a failure: its first attempt is immediate.
        let to = |path: &str| {
            let tls = format!("tls: {{ ca_file: \"@dir@/{ca}.crt\", {client} }}");
            format!("url: \"https://localhost:{port}/{path}\", {tls}")
        };
        let app = "app: { stop: { drain_timeout: 0s, grace_period: 1s, timeout: 3s } }";
        let sink = format!("sinks: {{ there: {{ http: {{ {} }} }} }}", to("lines"));
        let logs = format!("logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, {sink} }}");
        let source = format!("sources: {{ there: {{ scrape: {{ {}, interval: 200ms }} }} }}", to("metrics"));
        let page = "sinks: { page: { prometheus: { listen: \"127.0.0.1:@page@\" } } }";
        let body = format!("{app}\n{logs}\nmetrics: {{ {source}, {page} }}");
        scene.port("page");
        let outrigger = Outrigger::start(&scene, &body, &["sh", "-c", "echo line; exec sleep 300"]);
        match expected {
            None => {
                let page = format!("127.0.0.1:{}", scene.value("page"));
                let is_there = || get(&page, "/metrics").is_ok_and(|reply| reply.text().contains("up_here"));
                until(PATIENCE, &format!("{options}: the scrape succeeds"), is_there);
            }
            Some(part) => {
                let found = await_health(&outrigger, "logs.sinks.there", "degraded", part);
                assert!(!found.message.contains("closed the connection"), "{cert} {options}: {found:?}");
            }
        }
        outrigger.finish();
    }
}
