/**
 * xterm.js makes style elements and style attributes, which the page's policy forbids, so that nobody can bring any in. While a
 * terminal is shown, the document makes of them what scripts of the page may do: constructed style sheets, and properties.
 */

const create = Document.prototype.createElement;

const styleElement = (): HTMLElement => {
  const element = create.call(document, 'div');
  element.hidden = true;
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(element, 'textContent', {
    set: (text: string) => {
      sheet.replaceSync(text);
    },
  });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    HTMLElement.prototype.remove.call(element);
  };
  return element;
};

const otherElement = (name: string): HTMLElement => {
  const element = create.call(document, name);
  const setAttribute = element.setAttribute.bind(element);
  element.setAttribute = (attribute, value) => {
    if (attribute === 'style') element.style.cssText = value;
    else setAttribute(attribute, value);
  };
  return element;
};

/** Until the returned function is called. */
export const makeStylesAllowed = (): (() => void) => {
  Object.defineProperty(document, 'createElement', {
    configurable: true,
    value: (name: string) => (name === 'style' ? styleElement() : otherElement(name)),
  });
  return () => {
    Reflect.deleteProperty(document, 'createElement');
  };
};
