//! The invariant of the ledger, asserted at the end of every test that runs the product: what a row received is delivered,
//! merged, still pending, or dropped for a named reason. In: the admin address. Out: rows. Limits: one request each.

use serde_json::Value;

use super::get;

#[track_caller]
pub fn ledger_balances(admin: &str) {
    for row in rows(admin) {
        let name = row["id"].as_str().unwrap_or("?").to_owned();
        let received = row["received"].as_u64().unwrap_or_else(|| panic!("{name} has `received`: {row}"));
        let delivered = row["delivered"].as_u64().unwrap_or_else(|| panic!("{name} has `delivered`: {row}"));
        let merged = row["merged"].as_u64().unwrap_or(0);
        let pending = row["pending"].as_u64().unwrap_or_else(|| panic!("{name} has `pending`: {row}"));
        let accounted = delivered + merged + pending + dropped(&row);
        assert_eq!(received, accounted, "{name} balances: {row}");
    }
}

/// The row of a component by its path in the configuration (`logs.sinks.main`).
#[track_caller]
pub fn ledger_row(admin: &str, id: &str) -> Value {
    let rows = rows(admin);
    let found = rows.iter().find(|row| row["id"] == id);
    found.unwrap_or_else(|| panic!("no row {id} in {rows:?}")).clone()
}

/// What a row dropped, over all reasons.
pub fn dropped(row: &Value) -> u64 {
    row["dropped"].as_object().map_or(0, |reasons| reasons.values().filter_map(Value::as_u64).sum())
}

#[track_caller]
fn rows(admin: &str) -> Vec<Value> {
    let reply = get(admin, "/ledger").expect("the admin listener serves /ledger");
    assert_eq!(reply.status, 200, "/ledger: {}", reply.text());
    let rows = reply.json()["rows"].as_array().cloned();
    rows.unwrap_or_else(|| panic!("/ledger has rows: {}", reply.text()))
}
