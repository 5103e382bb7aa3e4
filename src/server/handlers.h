// The handlers behind the routes. Each parses the exchange's request and answers it; a RequestError
// that escapes becomes the answer. They run on a worker thread unless the route says otherwise.
#pragma once

#include <memory>

#include "server/http.h"
#include "server/serve_context.h"

namespace reft {

using Handler = void (*)(ServeContext& context, const std::shared_ptr<Exchange>& exchange);

void handle_chat_completions(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_completions(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_transcriptions(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_translations(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_tokenize(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_detokenize(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_apply_template(ServeContext& context, const std::shared_ptr<Exchange>& exchange);

void handle_load_adapter(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_unload_adapter(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_models(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_model(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_health(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_ping(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_version(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_metrics(ServeContext& context, const std::shared_ptr<Exchange>& exchange);
void handle_asset(ServeContext& context, const std::shared_ptr<Exchange>& exchange);

}  // namespace reft
