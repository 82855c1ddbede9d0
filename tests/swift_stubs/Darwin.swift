@_exported import Foundation
import Glibc

public typealias natural_t = UInt32
public typealias integer_t = Int32
public typealias mach_msg_type_number_t = UInt32
public typealias task_flavor_t = UInt32
public typealias kern_return_t = Int32
public let TASK_VM_INFO: Int32 = 22
public let KERN_SUCCESS: Int32 = 0
public var mach_task_self_: UInt32 = 0

public struct task_vm_info_data_t {
    public var phys_footprint: UInt64 = 0
    public var ledger_phys_footprint_peak: Int64 = 0
    public init() {}
}

public func task_info(
    _ task: UInt32, _ flavor: task_flavor_t, _ info: UnsafeMutablePointer<integer_t>,
    _ count: UnsafeMutablePointer<mach_msg_type_number_t>
) -> kern_return_t { fatalError() }

public typealias utsname = Glibc.utsname
@discardableResult public func uname(_ into: UnsafeMutablePointer<utsname>) -> Int32 { fatalError() }
