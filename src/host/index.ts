export { type FacadeName, facadeNames } from '../imds/index.ts';
export { ninepArguments, vsockArguments as qemuVsockArguments } from '../qemu/index.ts';
export {
  attachWords,
  mountCommand,
  ninepMountCommand,
  qemuArguments,
  vsockOfOthers,
} from './attachment.ts';
export type { Counters } from './device-session.ts';
export { exportReplica } from './export-tree.ts';
export { type ExportEntry, type ExportedTree, exportYaml } from './export-yaml.ts';
export { Host } from './host.ts';
export { HostLease } from './host-lease.ts';
export type { HostOptions } from './host-parts.ts';
export type { ImageSource } from './image-cache.ts';
export { type LeftOver, leftOvers } from './left-overs.ts';
export { nearest } from './near-miss.ts';
export { digestOf } from './node-record.ts';
export { type HttpOptions, type ServeEvent, type Server, serve } from './serve.ts';
export { groupId } from './serve-targets.ts';
export { ServedTree } from './served-tree.ts';
export { loadSpec, loadSpecOrThrow, parsePolicy, parseSpec } from './spec-file.ts';
export { formatProblem, formatProblems, type Paint, SpecError, type SpecProblem } from './spec-problem.ts';
export { State } from './state.ts';
export { specChecker } from './tree-port.ts';
export { removeTree, TreeStore, TreeStoreError, type TreeStoreErrorCode } from './tree-store.ts';
export { claimUids, type UidRange } from './uid-claim.ts';
