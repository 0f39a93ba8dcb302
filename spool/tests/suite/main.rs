//! The spool from outside: its promises, a model beside it, faults, and size.

mod common;
mod damage;
mod faults;
mod gangs;
mod model;
mod sharing;
mod size;
mod work;
