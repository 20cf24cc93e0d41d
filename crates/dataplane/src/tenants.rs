//! Fair shares between tenants: start-time fair queueing over rows (Goyal, Vin and Cheng, SIGCOMM 1996), and a bound on
//! how much of the queue one tenant fills (dynamic thresholds: Choudhury and Hahne, 1998).

use std::collections::HashMap;

/// Most tenants that are remembered at a time; further ones share one account.
const MAX_TENANTS: usize = 1024;
/// The account of all those who found no room.
const OTHERS: u64 = u64::MAX;

#[derive(Default)]
struct Account {
    /// Virtual time at which what it has asked for would be served.
    finish: u64,
    /// Requests that wait or run.
    pending: u32,
}

/// The accounts of one model's tenants. Tenant 0 stands for "no tenants" and has none.
#[derive(Default)]
pub struct Tenants {
    accounts: HashMap<u64, Account>,
    /// Start tag of the youngest batch that has been served.
    clock: u64,
    /// Accounts with requests.
    active: u32,
}

impl Tenants {
    /// The tenant's account, or the common one.
    pub fn account(&mut self, tenant: u64) -> u64 {
        if tenant == 0 || self.accounts.contains_key(&tenant) {
            return tenant;
        }
        if self.accounts.len() >= MAX_TENANTS {
            let clock = self.clock;
            self.accounts.retain(|_, account| account.pending > 0 || account.finish > clock);
        }
        if self.accounts.len() < MAX_TENANTS { tenant } else { OTHERS }
    }

    /// Whether requests of more than one tenant wait or run.
    pub fn is_contended(&self) -> bool {
        self.active > 1
    }

    /// Requests of an account that wait or run.
    pub fn pending(&self, account: u64) -> u32 {
        self.accounts.get(&account).map_or(0, |account| account.pending)
    }

    /// The start tag of an account's next request.
    pub fn start(&self, account: u64) -> u64 {
        self.accounts.get(&account).map_or(0, |account| account.finish).max(self.clock)
    }

    /// Charges a request; returns its start tag.
    pub fn enter(&mut self, account: u64, rows: u32) -> u64 {
        if account == 0 {
            return self.clock;
        }
        let start = self.start(account);
        let account = self.accounts.entry(account).or_default();
        account.finish = start + u64::from(rows);
        account.pending += 1;
        self.active += u32::from(account.pending == 1);
        start
    }

    /// A request is answered.
    pub fn leave(&mut self, account: u64) {
        if let Some(account) = self.accounts.get_mut(&account) {
            account.pending -= 1;
            self.active -= u32::from(account.pending == 0);
        }
    }

    /// A batch with that start tag is served.
    pub fn serve(&mut self, start: u64) {
        self.clock = self.clock.max(start);
    }
}
