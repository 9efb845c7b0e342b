//! A TCP server on a free loopback port with a thread for each connection. In: a handler. Out: connections, passed to the
//! handler. Dropping the server shuts down all connections and ends the threads. Limits: the connections that a test opens.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::free_port;

pub struct Server {
    address: String,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    accepted: AtomicUsize,
    open: Mutex<BTreeMap<usize, TcpStream>>,
}

impl Server {
    /// The handler gets each connection, which is shut down when it returns.
    pub fn start(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_on(free_port(), handler)
    }

    pub fn start_on(port: u16, handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_at(format!("127.0.0.1:{port}"), handler)
    }

    /// On a given address of this machine, such as the bridge of containers, which other network namespaces can reach.
    pub fn start_at(address: String, handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(&address).expect("the address is free");
        let shared = Arc::new(Shared::default());
        let handler = Arc::new(handler);
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared, &handler)
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// How many connections were ever accepted.
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

fn accept<H: Fn(TcpStream) + Send + Sync + 'static>(listener: &TcpListener, shared: &Arc<Shared>, handler: &Arc<H>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        stream.set_nodelay(true).ok();
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let Ok(handle) = stream.try_clone() else { continue };
        shared.open.lock().expect("no holder panics").insert(number, handle);
        let (shared, handler) = (shared.clone(), handler.clone());
        std::thread::spawn(move || {
            handler(stream);
            let handle = shared.open.lock().expect("no holder panics").remove(&number);
            if let Some(handle) = handle {
                handle.shutdown(Shutdown::Both).ok();
            }
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then checks `stopping`. If the address was removed together with its bridge of
        // containers, the connection fails and does not wake it: that thread ends with the tests.
        let woken = TcpStream::connect(&self.address).is_ok();
        if let Some(accepting) = self.accepting.take().filter(|_| woken) {
            accepting.join().ok();
        }
        if let Ok(open) = self.shared.open.lock() {
            for stream in open.values() {
                stream.shutdown(Shutdown::Both).ok();
            }
        }
    }
}
