export { type AcceleratorFound, findAccelerator } from './accelerator.ts';
export { killMachine, type VmRuntime } from './boot.ts';
export {
  type CommandLine,
  commandLine,
  metadataPortArguments,
  metadataPortName,
  ninepArguments,
  relayProgram,
  vsockArguments,
} from './command-line.ts';
export { type ConsoleRead, readConsole } from './console-log.ts';
export { type DiskOptions, ensureDisk, MAX_DISK_BYTES, syncDirectory } from './disks.ts';
export { QemuError, type QemuErrorCode } from './error.ts';
export type { GuardingLease } from './guard.ts';
export {
  type DiskImage,
  type ImageCopy,
  type ImageSource,
  type ImageStep,
  ImageStore,
  type ImageStoreOptions,
  type ImageWork,
  type KernelImage,
  type StoredImage,
} from './images.ts';
export { type LastWords, readLastWords } from './last-words.ts';
export { bootClockMs, leaseLeftMs, writeLease } from './lease-file.ts';
export { LogLimits } from './log-limits.ts';
export * from './machine.ts';
export { type NetworkDisk, writeDiskKey } from './network-disk.ts';
export { makeSearchable, makeVmDirectories, type VmPaths, vmPaths } from './paths.ts';
export {
  type Ending,
  endingInWords,
  identify,
  LastingProcess,
  machineBootId,
  type ProcessIdentity,
} from './process-identity.ts';
export { type Qcow2Header, readQcow2Header } from './qcow2.ts';
export { type ExecuteOptions, type Json, type JsonObject, Qmp, QmpError, type QmpEvent } from './qmp.ts';
export { type DiskStatistics, type NetworkStatistics, type VmStatistics, vmStatistics } from './statistics.ts';
export { killAllOf, killStrays, runsAsOneOf } from './strays.ts';
export {
  findLauncher,
  type Launcher,
  type LaunchLimits,
  type LaunchSpec,
  lastLine,
  SessionLauncher,
  SystemdLauncher,
} from './units.ts';
export { unlessAborted } from './unless-aborted.ts';
export { checkRoom } from './uploads.ts';
export { Vm, type VmOptions, type VmSaved } from './vm.ts';
export {
  isDown,
  newVm,
  type Step,
  step,
  type VmAction,
  type VmEvent,
  type VmPolicy,
  type VmState,
  type VmStatus,
} from './vm-state.ts';
