//! One run of a target over one input. In: the target's function and the bytes. Out: the shapes that it reported, or the failure:
//! the panic's message and location. Bound: an exit of the process (abort, stack overflow) is not caught here, but in `watch.rs`.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

/// A broken property or a panic of the product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    /// `file:line`; two failures with the same one count as the same.
    pub place: String,
    /// The functions on the stack, innermost first; empty unless requested.
    pub functions: Vec<String>,
}

thread_local! {
    static SHAPES: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static ARMED: Cell<Trace> = const { Cell::new(Trace::Off) };
    static FAILURE: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trace {
    /// A panic on this thread is not of a target.
    Off,
    PlaceOnly,
    Functions,
}

/// Called by a target to report a property of its result. An input with a new shape is retained and mutated further.
pub fn shape(of: impl Hash) {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    SHAPES.with_borrow_mut(|shapes| shapes.push(hasher.finish()));
}

/// The size of something as a shape: its order of magnitude.
pub fn bucket(size: usize) -> u32 {
    usize::BITS - size.leading_zeros()
}

/// A text without the parts that differ from input to input: digits and quoted text.
pub fn outline(text: &str) -> String {
    let mut quoted = false;
    let mut out = String::new();
    for c in text.chars() {
        let is_quote = matches!(c, '`' | '"' | '\'');
        quoted ^= is_quote;
        if (is_quote || !quoted) && !c.is_ascii_digit() && c.is_ascii() && c != '\n' {
            out.push(c);
        }
        if out.len() >= OUTLINE_MAX {
            break;
        }
    }
    out
}

const OUTLINE_MAX: usize = 80;

pub fn attempt(run: fn(&[u8]), input: &[u8], functions: bool) -> Result<Vec<u64>, Failure> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match ARMED.get() {
            Trace::Off => before(info),
            trace => note(info, trace),
        }));
    });
    SHAPES.with_borrow_mut(Vec::clear);
    ARMED.set(if functions { Trace::Functions } else { Trace::PlaceOnly });
    let ended = catch_unwind(AssertUnwindSafe(|| run(input)));
    ARMED.set(Trace::Off);
    let noted = FAILURE.take();
    match ended {
        Ok(()) => Ok(SHAPES.with_borrow_mut(std::mem::take)),
        Err(payload) => Err(noted.unwrap_or_else(|| Failure {
            message: text_of(payload.as_ref()),
            place: "unknown".into(),
            functions: Vec::new(),
        })),
    }
}

fn note(info: &PanicHookInfo<'_>, trace: Trace) {
    let place = info.location().map_or("unknown".to_string(), |at| format!("{}:{}", at.file(), at.line()));
    let functions = if trace == Trace::Functions { functions() } else { Vec::new() };
    FAILURE.set(Some(Failure { message: text_of(info.payload()), place, functions }));
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_string()
}

const FUNCTIONS_MAX: usize = 12;

/// The functions on the stack, without those of the panic itself and of the loop around the target.
fn functions() -> Vec<String> {
    let trace = Backtrace::force_capture().to_string();
    let numbered = trace.lines().filter_map(|line| line.trim().split_once(": "));
    let names = numbered.filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit())).map(|(_, name)| name);
    let inner = names
        .skip_while(|name| !name.contains("begin_unwind") && !name.contains("panic_fmt"))
        .skip(1)
        .take_while(|name| !name.contains("fuzz::attempt"));
    inner
        .filter(|name| !name.contains("core::") && !name.contains("std::"))
        .take(FUNCTIONS_MAX)
        .map(str::to_string)
        .collect()
}
