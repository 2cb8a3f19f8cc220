export { buildOf, buildOfSources, buildText } from './build.ts';
export { builtConsole, consoleAsset, consolePack } from './console.ts';
export { copyPart, isReadableByAll } from './copy.ts';
export {
  agentPart,
  commandPart,
  type ProcessPartName,
  processParts,
  type ThreadPartName,
  threadParts,
} from './parts.ts';
export { checkoutFile, commandOf, partEnvironment, startThread } from './start.ts';
export { thisVersion, type Version, versionOf, versionText } from './version.ts';
